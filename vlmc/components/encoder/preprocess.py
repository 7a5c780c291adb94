"""How an image file becomes pixel values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vlmc.components.contract import Described

Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0)]
Means = Annotated[tuple[Mean, Mean, Mean], Field(strict=False)]
Deviations = Annotated[tuple[Deviation, Deviation, Deviation], Field(strict=False)]


class Preprocess(Described):
    """Resize, crop and normalise, as the published system does it."""

    resize: Literal["shortest_edge", "stretch", "pad"] = Field(
        default="stretch",
        description="shortest_edge: scale the shorter side to the image size, keep the ratio, then "
        "crop the centre; stretch: scale both sides to the image size; pad: scale the longer side "
        "and fill the rest with the mean colour.",
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        default="bicubic", description="How pixels are resampled."
    )
    mean: Means = Field(
        default=(0.48145466, 0.4578275, 0.40821073),
        description="Mean of each RGB channel, on a scale of 0 to 1, taken away from the pixels.",
    )
    std: Deviations = Field(
        default=(0.26862954, 0.26130258, 0.27577711),
        description="Standard deviation of each RGB channel, on a scale of 0 to 1.",
    )
