"""The type of a bidirectional text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import (
    Architecture,
    Arguments,
    LanguageSpec,
    Parameters,
    divides,
    fields,
)
from vlmc.components.fields import ActivationKind, Depth, Epsilon, Heads, Positive, Rows, Width
from vlmc.diagnostics import Problem
from vlmc.diagnostics.divisors import nearest_divisor


class TextEncoder(LanguageSpec):
    """A bidirectional transformer over text: BERT (Devlin et al., 2019)."""

    architecture: ClassVar[Architecture] = "encoder"
    kind: Literal["encoder"] = "encoder"
    width: Width = Field(description="Channels of the hidden states.")
    layers: Depth = Field(description="Transformer blocks.")
    heads: Heads = Field(description="Attention heads.")
    hidden: Width = Field(description="Channels inside the MLP.")
    vocabulary: Positive = Field(description="Entries of the vocabulary.")
    context: Positive = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=512, description="Positions of the text that have an embedding, in tokens."
    )
    token_types: Rows = Field(
        default=2, description="Types of a token: which of two sentences it belongs to."
    )
    norm_eps: Epsilon = Field(default=1e-12, description="Epsilon of every LayerNorm.")
    activation: ActivationKind = Field(default="gelu", description="Nonlinearity of the MLP.")
    tied_head: bool = Field(
        default=True, description="Whether the output head is the embedding, transposed."
    )

    def cache_elements_per_token(self) -> int:
        return 0

    def problems(self) -> Iterator[Problem]:
        yield from divides(
            self.width,
            self.heads,
            code="VLMC101",
            path=("heads",),
            related=(("width",),),
            what="the language model's width",
            by="heads",
            help_=f"heads: {nearest_divisor(self.width, self.heads)}",
        )

    def arguments(self) -> Arguments:
        return {
            **fields(self, "width", "layers", "heads", "hidden", "vocabulary", "context"),
            **fields(self, "token_types", "norm_eps", "activation"),
        }

    def parameters(self) -> Parameters:
        block = count.block(
            self.width,
            heads=self.heads,
            hidden=self.hidden,
            norm_kind="layer",
            gated=False,
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
        )
        return {
            "embedding": self.vocabulary * self.width,
            "position_embedding": self.context * self.width,
            "token_type_embedding": self.token_types * self.width,
            "embedding_norm": count.norm(self.width, "layer"),
            "layers": self.layers * block,
        }

    def mini(self, width: int | None = None) -> Self:
        heads = min(self.heads, 4)
        own = heads * min(self.width // self.heads, 16)
        return self.model_copy(
            update={
                "width": width or own,
                "layers": min(self.layers, 3),
                "heads": heads if width is None else nearest_divisor(width, heads),
                "hidden": min(self.hidden, heads * 32),
                "vocabulary": min(self.vocabulary, 320),
                "context": min(self.context, 512),
            }
        )
