"""The type of fusion by gated cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import (
    Architecture,
    Arguments,
    FusionSpec,
    LanguageSpec,
    Parameters,
    fields,
    in_vocabulary,
)
from vlmc.components.fields import ActivationKind, Count, Depth, Epsilon, Heads, NormKind, Width
from vlmc.diagnostics import Problem
from vlmc.ir import Serving, Visual


class GatedCrossAttention(FusionSpec):
    """Gated cross-attention blocks between the language model's own (Flamingo, Idefics)."""

    points: ClassVar[tuple[str, ...]] = ("mid",)
    architectures: ClassVar[tuple[Architecture, ...]] = ("decoder",)
    kind: Literal["gated_cross_attention"] = "gated_cross_attention"
    every: Depth = Field(
        default=1,
        description="Blocks of the language model from one gated block to the next; the first "
        "stands before the language model's first.",
    )
    gate: Literal["tanh"] = Field(
        default="tanh", description="What opens the blocks: tanh of a weight that starts at 0."
    )
    gate_per_channel: bool = Field(
        default=False, description="Whether a gate has a weight for each channel instead of one."
    )
    attend: Literal["last_image", "all_previous"] = Field(
        default="last_image",
        description="Which images a token sees: the last one before it, or every one before it.",
    )
    token: Count | None = Field(
        default=None,
        description="Id of the token that marks an image in the text; the vocabulary's last entry "
        "by default.",
    )
    heads: Heads | None = Field(
        default=None, description="Attention heads; the language model's by default."
    )
    head_dim: Width | None = Field(
        default=None,
        description="Channels of a head; the language model's width / heads by default.",
    )
    hidden: Width | None = Field(
        default=None,
        description="Channels inside the MLP; 4 x the language model's width by default.",
    )
    norm: NormKind = Field(default="layer", description="layer: LayerNorm; rms: RMSNorm.")
    norm_eps: Epsilon = Field(default=1e-5, description="Epsilon of every norm.")
    activation: ActivationKind = Field(
        default="relu_squared", description="Nonlinearity of the MLP."
    )
    gated: bool = Field(default=False, description="Whether the MLP is a gated unit (SwiGLU).")
    qk_norm: NormKind | None = Field(
        default=None, description="Norm of each head's queries and keys; none by default."
    )
    visual_projection: bool = Field(
        default=True,
        description="Whether one projection, shared by all gated blocks, brings the visual tokens "
        "to the language model's width before keys and values are made of them.",
    )

    def in_sequence(self, visual: Visual) -> int:
        return 0

    def words(self) -> int:
        return 1

    def memory(self, visual: Visual) -> int:
        return visual.total

    def serving(self, language: LanguageSpec) -> Serving:
        return "cross_attention"

    def needs_language_width(self) -> bool:
        return False

    def image_token(self, language: LanguageSpec) -> int:
        """The id of the image token, resolved."""
        return language.total_vocabulary - 1 if self.token is None else self.token

    def attention_shape(self, language: LanguageSpec) -> tuple[int, int]:
        """Heads and the channels of a head, resolved."""
        heads = self.heads or language.heads
        return heads, self.head_dim or max(1, language.width // heads)

    def problems_with(self, visual: Visual, language: LanguageSpec) -> Iterator[Problem]:
        if self.every > language.layers:
            yield Problem(
                code="VLMC114",
                path=("every",),
                message="the interval of the gated blocks is longer than the language model",
                expected=f"at most {language.layers} (the language model's layers)",
                got=str(self.every),
                help=f"every: {max(1, language.layers // 8)}",
            )
        if self.token is not None:
            entries = language.total_vocabulary
            yield from in_vocabulary("token", self.token, entries, help_=entries - 1)

    def arguments(self, visual: Visual, language: LanguageSpec) -> Arguments:
        heads, head_dim = self.attention_shape(language)
        return {
            **fields(self, "every", "norm", "norm_eps", "activation", "gated", "qk_norm"),
            **fields(self, "visual_projection"),
            "width": language.width,
            "visual_width": visual.width,
            "blocks": -(-language.layers // self.every),
            "heads": heads,
            "head_dim": head_dim,
            "hidden": self.hidden or 4 * language.width,
            "gate_width": language.width if self.gate_per_channel else 1,
            "all_previous": self.attend == "all_previous",
            "image_token": self.image_token(language),
        }

    def parameters(self, visual: Visual, language: LanguageSpec) -> Parameters:
        heads, head_dim = self.attention_shape(language)
        width = language.width
        block = 2 * count.norm(width, self.norm)
        block += count.attention(
            width,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            source_width=width if self.visual_projection else visual.width,
            qkv_bias=False,
            output_bias=False,
            qk_norm=self.qk_norm,
        )
        block += count.mlp(width, self.hidden or 4 * width, gated=self.gated, bias=False)
        block += 2 * (width if self.gate_per_channel else 1)
        projection = count.linear(visual.width, width, bias=False)
        return {
            "visual_projection": projection if self.visual_projection else 0,
            "gated_blocks": -(-language.layers // self.every) * block,
        }

    def mini_for(self, language: LanguageSpec) -> Self:
        """An interval of two at most, which leaves a five-layer twin a shorter last stretch."""
        return self.model_copy(
            update={
                "every": min(self.every, 2, language.layers),
                "token": language.total_vocabulary - 1,
                "heads": None if self.heads is None else min(self.heads, 4),
                "head_dim": None if self.head_dim is None else min(self.head_dim, 16),
                "hidden": None if self.hidden is None else 2 * language.width,
            }
        )
