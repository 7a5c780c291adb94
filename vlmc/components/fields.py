"""Types that several components' fields share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
ActivationKind = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu_squared"]
NormKind = Literal["layer", "rms"]
