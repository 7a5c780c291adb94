"""What of a device's peak rates is reached, by the kind of work and its size."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import sqrt
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Point = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0, le=100)]]
"""A size of work, and the share of the peak that is reached there (above 1 in a cache)."""

Curve = Annotated[tuple[Point, ...], Field(min_length=1)]

Kind = Literal[
    "linear", "matmul", "attention", "attention_backward", "function", "elementwise", "cache"
]
"""Products with weights and other products; fused attention and its backward pass; functions and
reductions, which compute more than they move; what moves numbers alone; what puts tensors together,
as a token and its cache."""
MOVING: tuple[Kind, ...] = ("function", "elementwise", "cache")
"""What is held to the bandwidth alone."""


class Serving(BaseModel):
    """What runs where nothing is kept for a backward pass: results lie in memory that was just
    used, and for each token all weights are read. Shares of the bandwidth."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    memory: Curve = Field(description="[bytes that are moved, share of the bandwidth], ...")
    functions: Curve = Field(
        description="[bytes that an activation function, softmax or norm moves, share], ..."
    )
    rows: dict[Annotated[int, Field(gt=0)], Curve] = Field(
        min_length=1,
        description="By rows, [bytes of a product of so many rows with weights that no cache "
        "holds, share], ...; of more rows than these, products are as in training.",
    )
    cache: Curve = Field(
        description="[bytes that are moved when a token comes to a cache, share], ..."
    )
    query: Curve = Field(description="[bytes of fused attention of one query, share], ...")
    call_us: float = Field(
        default=0, ge=0, le=1e6, description="As that of training, in 10^-6 seconds."
    )

    @model_validator(mode="after")
    def _rising(self) -> Serving:
        check_rising((self.memory, self.functions, self.cache, self.query, *self.rows.values()))
        return self

    def share(self, flops: float, size: float, number_bytes: float, kind: Kind) -> float | None:
        """The share of the bandwidth that a call reaches which moves `size` bytes; None where it is
        held to the peak rate, too."""
        moving = {"function": self.functions, "elementwise": self.memory, "cache": self.cache}
        if kind in moving:
            return share(moving[kind], size)
        numbers = size / number_bytes
        if not flops or kind not in ("linear", "attention"):
            return None
        rows = flops / (2 * numbers)
        if kind == "attention":
            return share(self.query, size) if rows < 1 else None
        return self._of_rows(rows, size, numbers)

    def _of_rows(self, rows: float, size: float, numbers: float) -> float | None:
        """Between two numbers of rows time is linear. A product with square weights of M rows and
        so many numbers has FLOPs for M / (1 + 2 M / side) rows of endless weights."""
        points: list[tuple[float, float]] = []
        for count, curve in sorted(self.rows.items()):
            side = sqrt(count**2 + numbers) - count
            points.append((count * side / (side + 2 * count), 1 / share(curve, size)))
        if rows <= points[0][0]:
            return 1 / points[0][1]
        for (few, low), (more, high) in pairwise(points):
            if rows <= more:
                along = (rows - few) / (more - few)
                return 1 / (low * (1 - along) + high * along)
        return None


class Efficiency(BaseModel):
    """Shares of the peak rates, by the size of the work. Between two points the time is linear in
    the size; above the last the share stays; below the first, time stays."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    matmul: Curve = Field(description="[FLOPs of a product, share of the peak rate], ...")
    memory: Curve = Field(description="[bytes that are moved, share of the bandwidth], ...")
    formats: dict[str, Curve] = Field(
        default_factory=dict, description="Number formats whose products have a curve of their own."
    )
    attention: Curve | None = Field(
        default=None,
        description="[FLOPs of a fused attention, share of the peak rate], ...: by default as a "
        "product.",
    )
    attention_backward: Curve | None = Field(
        default=None, description="Likewise of its backward pass."
    )
    functions: Curve | None = Field(
        default=None,
        description="[bytes that an activation function, softmax or norm moves, share of the "
        "bandwidth], ...: by default as `memory`.",
    )
    adamw: Curve | None = Field(
        default=None,
        description="[numbers of a parameter, share of the bandwidth at which AdamW updates it, "
        "28 bytes for each], ...: by default as `memory`.",
    )
    call_us: float = Field(
        default=0,
        ge=0,
        le=1e6,
        description="What a call of an operator in a model takes over the curves (Python, "
        "autograd, views), in 10^-6 seconds; 0 where the device works meanwhile.",
    )
    again_us: float = Field(
        default=0,
        ge=0,
        le=1e6,
        description="What a call that checkpointing runs again takes over that (its hooks for what "
        "is saved), in 10^-6 seconds; likewise 0.",
    )
    serving: Serving | None = Field(
        default=None, description="What differs when serving: by default nothing."
    )
    measured: bool = Field(description="Whether the curves were measured; otherwise assumed.")
    source: str = Field(description="Where and how, or what the assumption is.")

    @model_validator(mode="after")
    def _rising(self) -> Efficiency:
        own = (self.matmul, self.memory, self.attention, self.attention_backward)
        check_rising((*own, self.functions, self.adamw, *self.formats.values()))
        return self

    def compute_share(
        self, flops: float, number: str | None = None, kind: Kind = "matmul"
    ) -> float:
        """The share of the peak rate that one call of `flops` FLOPs reaches."""
        own = {"attention": self.attention, "attention_backward": self.attention_backward}
        return share(own.get(kind) or self.formats.get(number or "", self.matmul), flops)

    def memory_share(self, size: float, kind: Kind = "elementwise") -> float:
        """The share of the bandwidth that moving `size` bytes reaches."""
        return share((kind == "function" and self.functions) or self.memory, size)


def check_rising(curves: Iterable[Curve | None]) -> None:
    """Raises ValueError where the sizes of a curve do not rise."""
    for curve in curves:
        if any(one[0] >= two[0] for one, two in pairwise(curve or ())):
            raise ValueError("sizes must rise from point to point")


def share(curve: tuple[Point, ...], size: float) -> float:
    """The curve at `size`."""
    first, last = curve[0], curve[-1]
    if size >= last[0]:
        return last[1]
    if size <= first[0]:
        return first[1] * size / first[0]
    for (left, low), (right, high) in pairwise(curve):
        if size <= right:
            along = (size - left) / (right - left)
            return size / (left / low * (1 - along) + right / high * along)
    raise AssertionError("the curve has an end")
