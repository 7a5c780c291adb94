"""The type of a normaliser-free ResNet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import Arguments, EncoderSpec, Parameters
from vlmc.components.encoder.frames import Frames
from vlmc.components.encoder.preprocess import Preprocess
from vlmc.components.fields import Depth, Side, Width
from vlmc.diagnostics import Problem
from vlmc.ir import TensorType, Visual

STRIDE = 32
"""Pixels of a side that become one row of features: 4 by the stem, 2 by each later stage."""

STEM = (16, 32, 64)
"""Channels of the stem's first convolutions; its last has half the first stage's."""

GAMMA = {
    "gelu": 1.7015043497085571,
    "gelu_tanh": 1.7015043497085571,
    "relu": 1.7139588594436646,
    "silu": 1.7881293296813965,
}
"""What makes the variance of an activation of unit-normal input 1 (nfnets/base.py in github
google-deepmind/deepmind-research)."""

Depths = Annotated[tuple[Depth, Depth, Depth, Depth], Field(strict=False)]
Widths = Annotated[tuple[Width, Width, Width, Width], Field(strict=False)]


class NFNet(EncoderSpec):
    """A normaliser-free ResNet of the F series (Brock et al., 2021), as in Flamingo."""

    kind: Literal["nfnet"] = "nfnet"
    image_size: Side = Field(description="Height and width of the input image, in pixels.")
    depths: Depths = Field(description="Blocks of each of the four stages.")
    widths: Widths = Field(description="Channels of each of the four stages.")
    group_size: Width = Field(
        default=128, description="Channels of a group of the grouped convolutions."
    )
    bottleneck_ratio: float = Field(
        default=0.5,
        gt=0,
        le=4,
        description="Channels inside a block, as a share of the stage's, rounded down to groups.",
    )
    se_ratio: float = Field(
        default=0.5,
        gt=0,
        le=4,
        description="Channels inside squeeze-and-excite, as a share of the stage's.",
    )
    alpha: float = Field(default=0.2, gt=0, le=10, description="Scale of each residual branch.")
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = Field(
        default="gelu_tanh", description="Nonlinearity, scaled to keep unit variance."
    )
    final_ratio: float = Field(
        default=2.0,
        gt=0,
        le=16,
        description="Channels of the last 1x1 convolution, as a multiple of the last stage's.",
    )
    frames: Frames | None = Field(
        default=None, description="Frames of a video; none for still images alone."
    )
    preprocess: Preprocess = Field(
        default=Preprocess.model_construct(), description="How an image becomes pixel values."
    )

    @property
    def bottlenecks(self) -> tuple[int, ...]:
        """Channels inside the blocks of each stage: whole groups."""
        inner = (int(width * self.bottleneck_ratio) for width in self.widths)
        return tuple(width // self.group_size * self.group_size for width in inner)

    @property
    def squeezed(self) -> tuple[int, ...]:
        """Channels inside squeeze-and-excite of each stage."""
        return tuple(max(1, int(width * self.se_ratio)) for width in self.widths)

    @property
    def features(self) -> int:
        """Channels of each visual token."""
        return max(1, int(self.widths[-1] * self.final_ratio))

    def input_type(self) -> TensorType:
        image = (3, self.image_size, self.image_size)
        if self.frames is None or self.frames.most == 1:
            return TensorType(("images", *image))
        return TensorType(("images", self.frames.most, *image))

    def visual(self) -> Visual:
        side = self.image_size // STRIDE
        return Visual(
            tokens=side * side,
            width=self.features,
            grid=(side, side),
            frames=1 if self.frames is None else self.frames.most,
            trained_frames=1 if self.frames is None else self.frames.train,
        )

    def problems(self) -> Iterator[Problem]:
        if self.image_size % STRIDE:
            nearest = max(1, round(self.image_size / STRIDE)) * STRIDE
            yield Problem(
                code="VLMC105",
                path=("image_size",),
                message=f"the image size {self.image_size} is not a multiple of {STRIDE}, the "
                "pixels of a side that become one row of features",
                expected=f"a multiple of {STRIDE}",
                got=f"{self.image_size} / {STRIDE} = {self.image_size // STRIDE} remainder "
                f"{self.image_size % STRIDE}",
                help=f"image_size: {nearest}",
            )
        for stage, (width, inner) in enumerate(zip(self.widths, self.bottlenecks, strict=True)):
            if inner == 0:
                yield Problem(
                    code="VLMC117",
                    path=("widths", stage),
                    message=f"stage {stage + 1} is too narrow for one group of channels",
                    expected=f"at least {math.ceil(self.group_size / self.bottleneck_ratio)} "
                    f"channels (group_size {self.group_size} / bottleneck_ratio "
                    f"{self.bottleneck_ratio:g})",
                    got=f"{width} x {self.bottleneck_ratio:g} = "
                    f"{int(width * self.bottleneck_ratio)} inside a block",
                    help=f"group_size: {max(1, int(width * self.bottleneck_ratio))}",
                )
        if self.widths[0] < 2:
            yield Problem(
                code="VLMC117",
                path=("widths", 0),
                message="the stem has half the channels of the first stage, which leaves none",
                expected="at least 2 channels",
                got=str(self.widths[0]),
                help="widths: [256, 512, 1536, 1536]",
            )

    def arguments(self) -> Arguments:
        return {
            "depths": self.depths,
            "widths": self.widths,
            "bottlenecks": self.bottlenecks,
            "group_size": self.group_size,
            "se_hidden": self.squeezed,
            "features": self.features,
            "activation": self.activation,
            "gamma": GAMMA[self.activation],
            "alpha": self.alpha,
            "frames": 1 if self.frames is None else self.frames.most,
        }

    def parameters(self) -> Parameters:
        stem = (3, *STEM, self.widths[0] // 2)
        inputs = stem[-1]
        blocks = 0
        for depth, width, inner, squeezed in zip(
            self.depths, self.widths, self.bottlenecks, self.squeezed, strict=True
        ):
            grouped = _conv(self.group_size, inner, kernel=3)
            block = 2 * grouped + _conv(inner, width) + 1
            block += count.linear(width, squeezed) + count.linear(squeezed, width)
            first = _conv(inputs, inner)
            # Every stage but the first begins with a stride, and so with a shortcut of its own.
            if blocks > 0 or inputs != width:
                first += _conv(inputs, width)
            blocks += depth * block + first + (depth - 1) * _conv(width, inner)
            inputs = width
        return {
            "stem": sum(_conv(stem[i], stem[i + 1], kernel=3) for i in range(len(stem) - 1)),
            "blocks": blocks,
            "final": _conv(inputs, self.features),
        }

    def mini(self) -> Self:
        scale = max(1, max(self.widths) // 96)
        least = max(16, math.ceil(1 / self.bottleneck_ratio))
        widths = tuple(min(width, max(width // scale, least)) for width in self.widths)
        narrowest = int(min(widths) * self.bottleneck_ratio)
        return self.model_copy(
            update={
                "image_size": min(self.image_size, 2 * STRIDE),
                "depths": tuple(min(depth, 2) for depth in self.depths),
                "widths": widths,
                "group_size": max(1, min(self.group_size, narrowest, 4)),
                "frames": None if self.frames is None else self.frames.mini(),
            }
        )


def _conv(inputs: int, outputs: int, *, kernel: int = 1) -> int:
    """A `StandardisedConv`: kernel over the inputs of a group, gain and bias."""
    return inputs * kernel**2 * outputs + 2 * outputs
