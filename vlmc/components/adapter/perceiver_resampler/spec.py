"""The type of the perceiver resampler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import AdapterSpec, Arguments, LanguageSpec, Parameters, fields
from vlmc.components.fields import ActivationKind, Depth, Epsilon, Heads, NormKind, Rows, Width
from vlmc.diagnostics import Problem
from vlmc.ir import Visual


class PerceiverResampler(AdapterSpec):
    """Learned queries that read any number of features (Flamingo, Idefics).

    The defaults are Flamingo's. Its appendix A.1.4 speaks of 1536 / 16 = 96 channels for keys and
    values, but the 194M parameters of its Table 5 need 128: 6 layers x (4 x 1536 x 2048 + 8 x
    1536^2) + 3072 x 1536 = 193.5M (96 gives 174.6M).
    """

    kind: Literal["perceiver_resampler"] = "perceiver_resampler"
    queries: Rows = Field(
        default=64, description="Learned queries: the visual tokens of one image or video."
    )
    layers: Depth = Field(default=6, description="Blocks of attention and MLP.")
    width: Width = Field(
        default=1536,
        description="Channels of the queries; features of another width are projected to it.",
    )
    heads: Heads = Field(default=16, description="Attention heads.")
    head_dim: Width = Field(default=128, description="Channels of a head.")
    activation: ActivationKind = Field(
        default="relu_squared", description="Nonlinearity of the MLP, whose inside is 4 x width."
    )
    qk_norm: NormKind | None = Field(
        default=None, description="Norm of each head's queries and keys; none by default."
    )
    norm_eps: Epsilon = Field(default=1e-5, description="Epsilon of every norm.")
    final_norm: bool = Field(
        default=False, description="Whether a LayerNorm follows the last block (Idefics)."
    )

    def output(self, source: Visual, language: LanguageSpec) -> Visual:
        return Visual(tokens=self.queries, width=self.width)

    def problems_with(self, source: Visual, language: LanguageSpec) -> Iterator[Problem]:
        if self.queries > source.total:
            yield Problem(
                code="VLMC112",
                path=("queries",),
                message=f"{self.queries} queries cannot resample fewer tokens than they are",
                expected=f"at most {source.total} = {source.tokens} tokens x {source.frames} "
                f"frames x {source.tiles} tiles",
                got=str(self.queries),
                help=f"queries: {source.total}",
            )
        if self.layers > language.layers:
            yield Problem(
                code="VLMC113",
                path=("layers",),
                message="the resampler is deeper than the language model that reads it",
                expected=f"at most {language.layers} layers (the language model's)",
                got=str(self.layers),
                help=f"layers: {min(6, language.layers)}",
            )

    def arguments(self, source: Visual, language: LanguageSpec) -> Arguments:
        return {
            **fields(self, "width", "queries", "layers", "heads", "head_dim"),
            **fields(self, "activation", "qk_norm", "norm_eps", "final_norm"),
            "source_width": source.width,
            "source_tokens": source.tokens * source.tiles,
            "frames": source.trained_frames if source.frames > 1 else 1,
        }

    def parameters(self, source: Visual, language: LanguageSpec) -> Parameters:
        block = 3 * count.norm(self.width, "layer")
        block += count.mlp(self.width, 4 * self.width, gated=False, bias=False)
        block += count.attention(
            self.width,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=self.head_dim,
            source_width=self.width,
            qkv_bias=False,
            output_bias=False,
            qk_norm=self.qk_norm,
        )
        projected = source.width != self.width
        timed = source.frames > 1 and source.trained_frames > 1
        return {
            "projection": count.linear(source.width, self.width, bias=False) if projected else 0,
            "time_embedding": source.trained_frames * self.width if timed else 0,
            "latents": self.queries * self.width,
            "layers": self.layers * block,
            "norm": count.norm(self.width, "layer") if self.final_norm else 0,
        }

    def mini_for(self, source: Visual, twin: Visual) -> Self:
        """Projects the features where the full design does, and never widens their number."""
        other = 48 if twin.width != 48 else 32
        return self.model_copy(
            update={
                "queries": min(self.queries, twin.total, 4),
                "layers": min(self.layers, 2),
                "width": twin.width if self.width == source.width else other,
                "heads": min(self.heads, 2),
                "head_dim": min(self.head_dim, 16),
            }
        )
