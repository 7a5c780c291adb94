"""The type of a vision transformer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import (
    Arguments,
    Described,
    EncoderSpec,
    Parameters,
    divides,
    fields,
)
from vlmc.components.encoder.frames import Frames
from vlmc.components.encoder.preprocess import Preprocess
from vlmc.components.fields import ActivationKind, Depth, Epsilon, Heads, Side, Width
from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.ir import TensorType, Visual


class Features(Described):
    """Which hidden states of the encoder become its visual tokens."""

    layer: int | Annotated[tuple[int, ...], Field(strict=False, min_length=1, max_length=1001)] = (
        Field(
            default=-1,
            description="Index into the hidden states: 0 is the input of the first block, -1 the "
            "output of the last. A list concatenates channels.",
        )
    )
    drop_cls: bool = Field(default=False, description="Leave out the CLS token.")
    norm: bool = Field(
        default=False, description="Apply the final LayerNorm to the chosen hidden states."
    )

    @property
    def layers(self) -> tuple[int, ...]:
        """The chosen indices as a tuple."""
        return (self.layer,) if isinstance(self.layer, int) else self.layer


class ViT(EncoderSpec):
    """A vision transformer (Dosovitskiy et al., 2021): CLIP, EVA, SigLIP and their kin."""

    kind: Literal["vit"] = "vit"
    image_size: Side = Field(description="Height and width of the input image, in pixels.")
    patch_size: Side = Field(description="Height and width of a patch, in pixels.")
    width: Width = Field(description="Channels of the hidden states.")
    layers: Depth = Field(description="Transformer blocks.")
    heads: Heads = Field(description="Attention heads.")
    hidden: Width = Field(description="Channels inside the MLP.")
    activation: ActivationKind = Field(default="gelu", description="Nonlinearity of the MLP.")
    norm_eps: Epsilon = Field(default=1e-5, description="Epsilon of every LayerNorm.")
    cls: bool = Field(default=True, description="Whether a CLS token stands before the patches.")
    patch_bias: bool = Field(default=False, description="Whether the patch convolution has a bias.")
    pre_norm: bool = Field(
        default=True, description="Whether a LayerNorm follows the position embedding (CLIP)."
    )
    post_norm: bool = Field(
        default=True, description="Whether the model holds a LayerNorm after the last block."
    )
    features: Features = Field(
        default=Features.model_construct(),
        description="Which hidden states become the visual tokens.",
    )
    frames: Frames | None = Field(
        default=None, description="Frames of a video; none for still images alone."
    )
    preprocess: Preprocess = Field(
        default=Preprocess.model_construct(), description="How an image becomes pixel values."
    )

    def input_type(self) -> TensorType:
        image = (3, self.image_size, self.image_size)
        if self.frames is None or self.frames.most == 1:
            return TensorType(("images", *image))
        return TensorType(("images", self.frames.most, *image))

    def visual(self) -> Visual:
        side = self.image_size // self.patch_size
        classes = 1 if self.cls and not self.features.drop_cls else 0
        return Visual(
            tokens=side * side + classes,
            width=self.width * len(self.features.layers),
            grid=(side, side),
            class_tokens=classes,
            frames=1 if self.frames is None else self.frames.most,
            trained_frames=1 if self.frames is None else self.frames.train,
        )

    def heads_for_tensor_parallel(self) -> tuple[tuple[Path, int], ...]:
        return ((("heads",), self.heads),)

    def problems(self) -> Iterator[Problem]:
        yield from divides(
            self.width,
            self.heads,
            code="VLMC101",
            path=("heads",),
            related=(("width",),),
            what="the encoder's width",
            by="heads",
            help_=f"heads: {nearest_divisor(self.width, self.heads)}",
        )
        nearest = max(1, round(self.image_size / self.patch_size)) * self.patch_size
        yield from divides(
            self.image_size,
            self.patch_size,
            code="VLMC105",
            path=("patch_size",) if self.patch_size <= self.image_size else ("image_size",),
            related=(("image_size",), ("patch_size",)),
            what="the image size",
            by="patch size",
            help_=f"image_size: {nearest}",
        )
        for layer in self.features.layers:
            if not -self.layers - 1 <= layer <= self.layers:
                yield Problem(
                    code="VLMC106",
                    path=("features", "layer"),
                    related=(("layers",),),
                    message=f"the encoder has no hidden state {layer}",
                    expected=f"{-self.layers - 1} to {self.layers} ({self.layers} blocks give "
                    f"{self.layers + 1} hidden states)",
                    got=str(layer),
                    help=f"layer: {-self.layers - 1 if layer < 0 else self.layers}",
                )
        if self.features.drop_cls and not self.cls:
            yield Problem(
                code="VLMC107",
                path=("features", "drop_cls"),
                message="there is no CLS token to drop",
                expected="drop_cls: false where cls is false",
                got="drop_cls: true",
                help="drop_cls: false",
            )
        if self.features.norm and not self.post_norm:
            yield Problem(
                code="VLMC107",
                path=("features", "norm"),
                message="there is no final LayerNorm to apply",
                expected="norm: false where post_norm is false",
                got="norm: true",
                help="norm: false",
            )

    def arguments(self) -> Arguments:
        states = self.layers + 1
        return {
            **fields(self, "image_size", "patch_size", "width", "layers", "heads", "hidden"),
            **fields(self, "activation", "norm_eps", "patch_bias", "pre_norm", "post_norm"),
            "class_token": self.cls,
            "feature_layers": tuple(layer % states for layer in self.features.layers),
            "drop_class_token": self.features.drop_cls,
            "norm_features": self.features.norm,
            "frames": 1 if self.frames is None else self.frames.most,
        }

    def parameters(self) -> Parameters:
        patches = (self.image_size // self.patch_size) ** 2
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
            "patch_embedding": 3 * self.patch_size**2 * self.width
            + (self.width if self.patch_bias else 0),
            "class_embedding": self.width if self.cls else 0,
            "position_embedding": (patches + (1 if self.cls else 0)) * self.width,
            "pre_norm": count.norm(self.width, "layer") if self.pre_norm else 0,
            "layers": self.layers * block,
            "post_norm": count.norm(self.width, "layer") if self.post_norm else 0,
        }

    def mini(self) -> Self:
        layers = min(self.layers, 3)
        chosen = tuple(
            max(-layers - 1, layer) if layer < 0 else min(layers, layer)
            for layer in self.features.layers
        )
        side = min(self.image_size // self.patch_size, 4)
        patch = min(self.patch_size, 8)
        heads = min(self.heads, 4)
        return self.model_copy(
            update={
                "image_size": side * patch,
                "patch_size": patch,
                "width": heads * min(self.width // self.heads, 16),
                "heads": heads,
                "layers": layers,
                "hidden": min(self.hidden, heads * 32),
                "frames": None if self.frames is None else self.frames.mini(),
                "features": self.features.model_copy(
                    update={"layer": chosen[0] if isinstance(self.features.layer, int) else chosen}
                ),
            }
        )
