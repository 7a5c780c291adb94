"""What of a device's peak rates is reached, by the size of the work."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

Point = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0, le=100)]]
"""A size of work, and the share of the peak that is reached there (above 1 in a cache)."""

Curve = Annotated[tuple[Point, ...], Field(min_length=1)]


class Efficiency(BaseModel):
    """Shares of the peak rates, by the size of the work. Between two points a share is linear in
    the logarithm of the size; above the last it stays; below the first, time stays."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    matmul: Curve = Field(description="[FLOPs of a product, share of the peak rate], ...")
    memory: Curve = Field(description="[bytes that are moved, share of the bandwidth], ...")
    formats: dict[str, Curve] = Field(
        default_factory=dict, description="Number formats whose products have a curve of their own."
    )
    measured: bool = Field(description="Whether the curves were measured; otherwise assumed.")
    source: str = Field(description="Where and how, or what the assumption is.")

    @field_validator("matmul", "memory")
    @classmethod
    def _rising(cls, curve: tuple[Point, ...]) -> tuple[Point, ...]:
        sizes = [size for size, _ in curve]
        if any(one >= two for one, two in pairwise(sizes)):
            raise ValueError("sizes must rise from point to point")
        return curve

    @field_validator("formats")
    @classmethod
    def _all_rising(cls, curves: dict[str, tuple[Point, ...]]) -> dict[str, tuple[Point, ...]]:
        for curve in curves.values():
            cls._rising(curve)
        return curves

    def matmul_share(self, flops: float, number: str | None = None) -> float:
        """The share of the peak rate that a product of `flops` FLOPs reaches."""
        return share(self.formats.get(number or "", self.matmul), flops)

    def memory_share(self, size: float) -> float:
        """The share of the bandwidth that moving `size` bytes reaches."""
        return share(self.memory, size)


def share(curve: tuple[Point, ...], size: float) -> float:
    """The curve at `size`."""
    first, last = curve[0], curve[-1]
    if size >= last[0]:
        return last[1]
    if size <= first[0]:
        return first[1] * size / first[0]
    for (left, low), (right, high) in pairwise(curve):
        if size <= right:
            along = math.log(size / left) / math.log(right / left)
            return low + (high - low) * along
    raise AssertionError("the curve has an end")
