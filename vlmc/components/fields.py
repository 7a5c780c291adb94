"""Types that several components' fields share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Depth = Annotated[int, Field(ge=1, le=1000)]
"""Blocks that follow one another: ten times the deepest published model."""
Width = Annotated[int, Field(ge=1, le=2**20)]
"""Channels of a vector."""
Side = Annotated[int, Field(ge=1, le=2**16)]
"""Pixels of one side of an image or a patch."""
Heads = Annotated[int, Field(ge=1, le=2**16)]
Rows = Annotated[int, Field(ge=1, le=2**20)]
"""Vectors of one kind: queries, regions, classes, types."""
FrameCount = Annotated[int, Field(ge=1, le=2**16)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
ActivationKind = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu_squared"]
NormKind = Literal["layer", "rms"]
