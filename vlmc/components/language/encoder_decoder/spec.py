"""The type of an encoder-decoder language model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

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
    in_vocabulary,
)
from vlmc.components.fields import (
    ActivationKind,
    Count,
    Depth,
    Epsilon,
    Heads,
    Positive,
    Rows,
    Width,
)
from vlmc.diagnostics import Problem
from vlmc.diagnostics.divisors import nearest_divisor


class DistanceBuckets(Described):
    """How an encoder-decoder knows the order of its tokens: a bias for each bucket of distances."""

    buckets: Rows = Field(
        default=32, description="Buckets of distances; the encoder halves them by direction."
    )
    max_distance: Positive = Field(
        default=128, description="Distance in tokens from which on all share the last bucket."
    )


class EncoderDecoder(LanguageSpec):
    """An encoder-decoder transformer: T5, Flan-T5. The image and the prompt go to the encoder, the
    decoder writes the answer."""

    architecture: ClassVar[Architecture] = "encoder_decoder"
    kind: Literal["encoder_decoder"] = "encoder_decoder"
    width: Width = Field(description="Channels of the hidden states.")
    layers: Depth = Field(description="Transformer blocks of the encoder.")
    decoder_layers: Annotated[int, Field(ge=0, le=1000)] | None = Field(
        default=None,
        description="Transformer blocks of the decoder; as many as `layers` by default.",
    )
    heads: Heads = Field(description="Attention heads.")
    head_dim: Width | None = Field(
        default=None, description="Channels of a head; width / heads by default."
    )
    hidden: Width = Field(description="Channels inside the MLP.")
    vocabulary: Positive = Field(description="Entries of the vocabulary.")
    context: Positive | None = Field(
        default=None,
        description="Longest prompt (images included) that the encoder was made for, in tokens; "
        "none where it has no bound.",
    )
    norm_eps: Epsilon = Field(default=1e-6, description="Epsilon of every RMSNorm.")
    activation: ActivationKind = Field(
        default="gelu_tanh", description="Nonlinearity of the MLP (T5 v1.0: relu)."
    )
    gated: bool = Field(default=True, description="Whether the MLP is a gated unit (T5 v1.1).")
    positions: DistanceBuckets = Field(
        default=DistanceBuckets.model_construct(),
        description="How order is known: a relative position bias.",
    )
    tied_head: bool = Field(
        default=False,
        description="Whether the output head is the embedding, transposed; its input is then "
        "scaled by width ** -0.5 (T5 v1.0).",
    )
    start_token: Count = Field(
        default=0, description="Id of the token that the decoder starts with (T5: the padding)."
    )

    pad_token: Count = Field(
        default=0, description="Id that the decoder reads in place of labels that do not count."
    )

    @property
    def decoder_depth(self) -> int:
        """Transformer blocks of the decoder, resolved."""
        return self.layers if self.decoder_layers is None else self.decoder_layers

    @property
    def channels_per_head(self) -> int:
        """Channels of a head, resolved."""
        return self.head_dim or self.width // self.heads

    @property
    def head_scale(self) -> float | None:
        return self.width**-0.5 if self.tied_head else None

    def cache_elements_per_token(self) -> int:
        """Of a token of the prompt for cross-attention, and as many of one of the answer."""
        return 2 * self.decoder_depth * self.heads * self.channels_per_head

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
        if self.decoder_layers == 0:
            yield Problem(
                code="VLMC115",
                path=("decoder_layers",),
                message="an encoder-decoder without a decoder cannot answer",
                expected="at least 1",
                got="0",
                help=f"decoder_layers: {self.layers}",
            )
        yield from in_vocabulary("start_token", self.start_token, self.vocabulary, help_=0)
        yield from in_vocabulary("pad_token", self.pad_token, self.vocabulary, help_=0)
        yield from self._position_problems()

    def _position_problems(self) -> Iterator[Problem]:
        buckets = self.positions.buckets
        if buckets % 4:
            yield Problem(
                code="VLMC115",
                path=("positions", "buckets"),
                message="the encoder halves the buckets by direction, then into near and far",
                expected="a multiple of 4",
                got=f"{buckets} / 4 = {buckets // 4} remainder {buckets % 4}",
                help=f"buckets: {max(1, round(buckets / 4)) * 4}",
            )
        if self.positions.max_distance <= buckets // 2:
            yield Problem(
                code="VLMC115",
                path=("positions", "max_distance"),
                message="the decoder's buckets of single distances reach beyond max_distance",
                expected=f"more than {buckets} / 2 = {buckets // 2}",
                got=str(self.positions.max_distance),
                help=f"max_distance: {4 * buckets}",
            )

    def arguments(self) -> Arguments:
        return {
            **fields(self, "width", "heads", "hidden", "vocabulary", "norm_eps"),
            **fields(self, "activation", "gated", "start_token", "pad_token"),
            "encoder_layers": self.layers,
            "decoder_layers": self.decoder_depth,
            "head_dim": self.channels_per_head,
            "buckets": self.positions.buckets,
            "max_distance": self.positions.max_distance,
        }

    def parameters(self) -> Parameters:
        bias = self.positions.buckets * self.heads
        return {
            "embedding": self.vocabulary * self.width,
            "encoder_bias": bias,
            "encoder_layers": self.layers * self._block(None),
            "encoder_norm": count.norm(self.width, "rms"),
            "decoder_bias": bias,
            "decoder_layers": self.decoder_depth * self._block(self.width),
            "decoder_norm": count.norm(self.width, "rms"),
        }

    def _block(self, cross_width: int | None) -> int:
        return count.block(
            self.width,
            heads=self.heads,
            head_dim=self.channels_per_head,
            hidden=self.hidden,
            norm_kind="rms",
            gated=self.gated,
            qkv_bias=False,
            output_bias=False,
            mlp_bias=False,
            cross_width=cross_width,
        )

    def mini(self, width: int | None = None) -> Self:
        """Distances run out of the buckets within a short prompt, as they do at full size."""
        heads = min(self.heads, 4)
        vocabulary = min(self.vocabulary, 320)
        buckets = min(self.positions.buckets, 16)
        channels = min(self.channels_per_head, 16)
        # A width that the heads may not divide wants channels of its own.
        own_channels = self.head_dim is not None or width is not None
        return self.model_copy(
            update={
                "width": width or (min(self.width, 64) if self.head_dim else heads * channels),
                "layers": min(self.layers, 4),
                "decoder_layers": None
                if self.decoder_layers is None
                else min(self.decoder_layers, 3),
                "heads": heads,
                "head_dim": channels if own_channels else None,
                "hidden": min(self.hidden, heads * 32),
                "vocabulary": vocabulary,
                "context": None if self.context is None else min(self.context, 512),
                "start_token": min(self.start_token, vocabulary - 1),
                "pad_token": min(self.pad_token, vocabulary - 1),
                "positions": self.positions.model_copy(
                    update={
                        "buckets": buckets,
                        "max_distance": max(
                            buckets // 2 + 1, min(self.positions.max_distance, 2 * buckets)
                        ),
                    }
                ),
            }
        )
