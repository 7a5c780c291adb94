"""The type of a decoder-only language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import (
    Architecture,
    Arguments,
    Described,
    LanguageSpec,
    Parameters,
    divides,
    fields,
)
from vlmc.components.fields import (
    ActivationKind,
    Count,
    Depth,
    Epsilon,
    Heads,
    NormKind,
    Positive,
    Width,
)
from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.divisors import nearest_divisor


class Positions(Described):
    """How a decoder knows the order of its tokens."""

    kind: Literal["rotary", "learned", "transformer_xl"] = Field(
        default="rotary",
        description="rotary: Su et al. (2021); learned: an embedding for each position; "
        "transformer_xl: relative attention of Dai et al. (2019), as in Gopher and Chinchilla.",
    )
    base: float = Field(default=10000.0, gt=1, description="Base of the rotary frequencies.")
    offset: Count = Field(
        default=0, description="Rows of a learned embedding before the first position (OPT: 2)."
    )


class Decoder(LanguageSpec):
    """A decoder-only transformer: Llama, OPT, Chinchilla, Qwen and their kin."""

    architecture: ClassVar[Architecture] = "decoder"
    kind: Literal["decoder"] = "decoder"
    width: Width = Field(description="Channels of the hidden states.")
    layers: Depth = Field(description="Transformer blocks.")
    heads: Heads = Field(description="Attention heads.")
    kv_heads: Heads | None = Field(
        default=None, description="Key/value heads of grouped attention; `heads` by default."
    )
    head_dim: Width | None = Field(
        default=None, description="Channels of a head; width / heads by default."
    )
    hidden: Width = Field(description="Channels inside the MLP.")
    vocabulary: Positive = Field(description="Entries of the vocabulary.")
    added_vocabulary: Count = Field(
        default=0,
        description="Entries with an embedding and a head of their own, after the vocabulary "
        "(Idefics).",
    )
    context: Positive | None = Field(
        default=None,
        description="Positions the model was made for, in tokens; none where it has no bound.",
    )
    norm: NormKind = Field(default="rms", description="layer: LayerNorm; rms: RMSNorm.")
    norm_eps: Epsilon = Field(default=1e-6, description="Epsilon of every norm.")
    activation: ActivationKind = Field(default="silu", description="Nonlinearity of the MLP.")
    gated: bool = Field(default=True, description="Whether the MLP is a gated unit (SwiGLU).")
    qkv_bias: bool = Field(default=False, description="Bias on query, key and value projections.")
    output_bias: bool = Field(default=False, description="Bias on the output projection.")
    mlp_bias: bool = Field(default=False, description="Bias on the MLP's projections.")
    positions: Positions = Field(
        default=Positions.model_construct(), description="How order is known."
    )
    tied_head: bool = Field(
        default=False, description="Whether the output head is the embedding, transposed."
    )

    @property
    def total_vocabulary(self) -> int:
        return self.vocabulary + self.added_vocabulary

    @property
    def key_value_heads(self) -> int:
        """Key/value heads, resolved."""
        return self.kv_heads or self.heads

    @property
    def channels_per_head(self) -> int:
        """Channels of a head, resolved."""
        return self.head_dim or self.width // self.heads

    def heads_for_tensor_parallel(self) -> tuple[tuple[Path, int], ...]:
        if self.kv_heads is None:
            return ((("heads",), self.heads),)
        return ((("heads",), self.heads), (("kv_heads",), self.kv_heads))

    def cache_elements_per_token(self) -> int:
        return 2 * self.layers * self.key_value_heads * self.channels_per_head

    def problems(self) -> Iterator[Problem]:
        if self.head_dim is None:
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
        yield from divides(
            self.heads,
            self.key_value_heads,
            code="VLMC102",
            path=("kv_heads",),
            related=(("heads",),),
            what="the number of heads",
            by="key/value heads",
            help_=f"kv_heads: {nearest_divisor(self.heads, self.key_value_heads)}",
        )
        if self.positions.kind == "rotary" and self.channels_per_head % 2:
            yield Problem(
                code="VLMC108",
                path=("positions", "kind") if self.head_dim is None else ("head_dim",),
                related=(("heads",), ("width",)),
                message=f"rotary positions turn channels in pairs, but a head has "
                f"{self.channels_per_head}",
                expected="an even number of channels for each head",
                got=f"{self.width} / {self.heads} = {self.channels_per_head}"
                if self.head_dim is None
                else str(self.head_dim),
                help=self._even_heads(),
            )
        if self.positions.kind == "transformer_xl":
            if self.width % 2:
                yield Problem(
                    code="VLMC108",
                    path=("width",),
                    message="relative positions are pairs of sine and cosine, but the width is odd",
                    expected="an even width",
                    got=str(self.width),
                    help=f"width: {self.width + 1}",
                )
            if self.key_value_heads != self.heads:
                yield Problem(
                    code="VLMC102",
                    path=("kv_heads",),
                    message="relative attention has no grouped key/value heads",
                    expected=f"kv_heads: {self.heads}",
                    got=f"kv_heads: {self.key_value_heads}",
                    help=f"kv_heads: {self.heads}",
                )
        if self.positions.kind == "learned" and self.context is None:
            yield Problem(
                code="VLMC108",
                path=("positions", "kind"),
                message="a learned position embedding needs to know how many positions there are",
                expected="a context",
                got="none",
                help="context: 2048",
            )

    def _even_heads(self) -> str:
        """What gives each head an even number of channels."""
        if self.head_dim is None and self.width % 2 == 0:
            return f"heads: {nearest_divisor(self.width // 2, self.heads)}"
        return f"head_dim: {self.channels_per_head + 1}"

    def arguments(self) -> Arguments:
        return {
            **fields(self, "width", "layers", "heads", "hidden", "vocabulary", "added_vocabulary"),
            **fields(self, "norm", "norm_eps", "activation", "gated"),
            **fields(self, "qkv_bias", "output_bias", "mlp_bias"),
            "kv_heads": self.key_value_heads,
            "head_dim": self.channels_per_head,
            "positions": self.positions.kind,
            "rotary_base": self.positions.base,
            "position_rows": (self.context or 0) + self.positions.offset,
            "position_offset": self.positions.offset,
        }

    def parameters(self) -> Parameters:
        block = count.block(
            self.width,
            heads=self.heads,
            kv_heads=self.key_value_heads,
            head_dim=self.channels_per_head,
            hidden=self.hidden,
            norm_kind=self.norm,
            gated=self.gated,
            qkv_bias=self.qkv_bias,
            output_bias=self.output_bias,
            mlp_bias=self.mlp_bias,
        )
        if self.positions.kind == "transformer_xl":
            inner = self.heads * self.channels_per_head
            block += count.linear(self.width, inner, bias=False) + 2 * inner
        learned = self.positions.kind == "learned"
        rows = (self.context or 0) + self.positions.offset
        return {
            "embedding": self.vocabulary * self.width,
            "added_embedding": self.added_vocabulary * self.width,
            "position_embedding": rows * self.width if learned else 0,
            "layers": self.layers * block,
            "norm": count.norm(self.width, self.norm),
        }

    def mini(self, width: int | None = None) -> Self:
        """Five layers at most, so that an interval of two leaves a shorter last stretch."""
        heads = min(self.heads, 4)
        grouped = heads // 2 if self.key_value_heads < self.heads else heads
        kv_heads = 1 if self.key_value_heads == 1 else max(1, grouped)
        channels = min(self.channels_per_head, 16)
        # A width that the heads may not divide wants channels of its own.
        own_channels = self.head_dim is not None or width is not None
        return self.model_copy(
            update={
                "width": width or (min(self.width, 64) if self.head_dim else heads * channels),
                "layers": min(self.layers, 5),
                "heads": heads,
                "kv_heads": None if self.kv_heads is None else kv_heads,
                "head_dim": channels if own_channels else None,
                "hidden": min(self.hidden, heads * 32),
                "vocabulary": min(self.vocabulary, 320),
                "added_vocabulary": min(self.added_vocabulary, 2),
                "context": None if self.context is None else min(self.context, 512),
            }
        )
