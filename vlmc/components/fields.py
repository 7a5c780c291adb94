"""Types that several components' fields share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError


def _whole(value: object) -> object:
    if isinstance(value, bool | float):
        raise PydanticKnownError("int_type")
    return value


WHOLE = BeforeValidator(_whole)
"""For a literal of numbers, which takes whatever equals one of them: `true` and `1.0` are 1."""
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
ZeroStage = Annotated[Literal[0, 1, 2, 3], WHOLE]
"""What replicas share out in training; `vlmc.ir.training` says what each means."""
