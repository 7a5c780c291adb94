"""The type of the Q-Former."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import (
    AdapterSpec,
    Arguments,
    LanguageSpec,
    Parameters,
    divides,
    fields,
)
from vlmc.components.fields import ActivationKind, Depth, Epsilon, Heads, Rows, Width
from vlmc.diagnostics import Problem
from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.ir import Visual


class QFormer(AdapterSpec):
    """Learned queries that read the image through a BERT with cross-attention (BLIP-2).

    The defaults are the published Q-Former's: 105M parameters for the 1,408 channels of EVA ViT-g
    (the paper's 107M of trained parameters are these and the projection to the language model).
    The paper's 188M also count the path for text (its word embedding and its own MLP in every
    layer), which serves the pre-training alone: generation never runs it.
    """

    kind: Literal["qformer"] = "qformer"
    queries: Rows = Field(default=32, description="Learned queries: visual tokens it gives.")
    layers: Depth = Field(default=12, description="Transformer blocks.")
    cross_attention_every: Depth = Field(
        default=2,
        description="Layers from one cross-attention into the image to the next, the first at "
        "layer 0.",
    )
    width: Width = Field(default=768, description="Channels of the queries.")
    heads: Heads = Field(default=12, description="Attention heads.")
    hidden: Width = Field(default=3072, description="Channels inside the MLP.")
    activation: ActivationKind = Field(default="gelu", description="Nonlinearity of the MLP.")
    norm_eps: Epsilon = Field(default=1e-12, description="Epsilon of every LayerNorm.")

    def output(self, source: Visual, language: LanguageSpec) -> Visual:
        return Visual(tokens=self.queries, width=language.width)

    def problems(self) -> Iterator[Problem]:
        yield from divides(
            self.width,
            self.heads,
            code="VLMC101",
            path=("heads",),
            related=(("width",),),
            what="the Q-Former's width",
            by="heads",
            help_=f"heads: {nearest_divisor(self.width, self.heads)}",
        )
        if self.cross_attention_every > self.layers:
            yield Problem(
                code="VLMC114",
                path=("cross_attention_every",),
                message="the interval of the cross-attention is longer than the Q-Former",
                expected=f"at most {self.layers} (its layers)",
                got=str(self.cross_attention_every),
                help=f"cross_attention_every: {self.layers}",
            )

    def problems_with(self, source: Visual, language: LanguageSpec) -> Iterator[Problem]:
        if self.queries > source.total:
            yield Problem(
                code="VLMC112",
                path=("queries",),
                message=f"{self.queries} queries cannot hold more than the {source.total} tokens "
                "that they read",
                expected=f"at most {source.total} queries",
                got=str(self.queries),
                help=f"queries: {source.total}",
            )
        if self.layers > language.layers:
            yield Problem(
                code="VLMC113",
                path=("layers",),
                message="the Q-Former is deeper than the language model that reads it",
                expected=f"at most {language.layers} layers (the language model's)",
                got=str(self.layers),
                help=f"layers: {min(12, language.layers)}",
            )

    def arguments(self, source: Visual, language: LanguageSpec) -> Arguments:
        return {
            **fields(self, "width", "queries", "layers", "heads", "hidden"),
            **fields(self, "activation", "norm_eps", "cross_attention_every"),
            "source_width": source.width,
            "output_width": language.width,
        }

    def parameters(self, source: Visual, language: LanguageSpec) -> Parameters:
        crossing = -(-self.layers // self.cross_attention_every)
        return {
            "queries": self.queries * self.width,
            "norm": count.norm(self.width, "layer"),
            "layers": crossing * self._block(source.width)
            + (self.layers - crossing) * self._block(None),
            "projection": count.linear(self.width, language.width),
        }

    def _block(self, cross_width: int | None) -> int:
        return count.block(
            self.width,
            heads=self.heads,
            hidden=self.hidden,
            norm_kind="layer",
            gated=False,
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            cross_width=cross_width,
        )

    def mini_for(self, source: Visual, twin: Visual) -> Self:
        """Three layers at most, so that an interval of two has layers with and without
        cross-attention; queries and the rest shrink with the features."""
        layers, heads = min(self.layers, 3), min(self.heads, 4)
        return self.model_copy(
            update={
                "queries": min(self.queries, twin.total, 4),
                "layers": layers,
                "cross_attention_every": min(self.cross_attention_every, layers),
                "heads": heads,
                "width": heads * min(self.width // self.heads, 16),
                "hidden": min(self.hidden, heads * 32),
            }
        )
