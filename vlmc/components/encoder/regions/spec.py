"""The type of precomputed region features."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from vlmc.components.contract import Arguments, EncoderSpec, Parameters, fields
from vlmc.components.fields import Rows, Width
from vlmc.ir import TensorType, Visual


class Regions(EncoderSpec):
    """Features of image regions that an object detector computed beforehand (VisualBERT)."""

    kind: Literal["regions"] = "regions"
    count: Rows = Field(default=36, description="Regions of one image, at most.")
    width: Width = Field(default=2048, description="Channels of the features of a region.")
    boxes: bool = Field(
        default=False,
        description="Whether the data holds a bounding box for each region. A single stream places "
        "regions by their alignment with words and reads no coordinates.",
    )

    def input_name(self) -> str:
        return "visual_embeds"

    def input_type(self) -> TensorType:
        return TensorType(("images", self.count, self.width))

    def visual(self) -> Visual:
        return Visual(tokens=self.count, width=self.width)

    def arguments(self) -> Arguments:
        return fields(self, "width")

    def parameters(self) -> Parameters:
        return {}

    def mini(self) -> Self:
        return self.model_copy(update={"count": min(self.count, 6), "width": min(self.width, 48)})
