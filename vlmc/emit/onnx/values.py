"""Values of a graph in the making, and their extents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils._sympy.functions import FloorDiv

from vlmc.emit.onnx.builder import Builder

Extent = Any
"""An int, or a sympy expression of extents that vary."""
Shape = tuple[Extent, ...]


def extent(size: Any) -> Extent:
    """An extent of a captured value."""
    if isinstance(size, int):
        return size
    expression: Any = size.node.expr
    return int(expression) if expression.is_Integer else expression


def shape_of(value: Tensor) -> Shape:
    """The extents of a captured tensor."""
    return tuple(extent(size) for size in value.shape)


@dataclass(eq=False, kw_only=True)
class Value:
    """A tensor of the graph, in one or several forms, of which only those that are read are made.

    Transformers compute on rows: norms, projections and what lies between them see
    [rows, width] (`flat`) and not [batch, tokens, width]; attention sees [batch, tokens, heads *
    head_dim] (`tokens`) and not [batch, heads, tokens, head_dim].
    """

    shape: Shape
    dtype: torch.dtype
    name: str = ""
    """As it is."""
    flat: str = ""
    """As [all other extents together, last extent]."""
    split: Value | None = None
    """[batch, tokens, heads * head_dim], of which this is [batch, tokens, heads, head_dim]."""
    tokens: Value | None = None
    """[batch, tokens, heads * head_dim], of which this is [batch, heads, tokens, head_dim]."""
    piece: tuple[Value, int] | None = None
    """A value and where, along its last dimension, this begins in it."""
    turned: tuple[Value, Tensor] | None = None
    """What this is, rotated by its tokens' places in their row (places times frequencies
    [head_dim / 2] are the angles)."""
    joined: tuple[Value, Value] | None = None
    """A cache and the newest tokens, which this holds one after the other along dimension 2."""
    stored: str = ""
    """A weight in the number format in which it is stored."""
    stored_type: int = 0
    """ONNX's number for that format."""
    numbers: Tensor | None = None
    """The values of a constant that depends on no weight."""
    weights: tuple[str, ...] = ()
    """The weights that this is, joined along their first dimension."""

    @property
    def rows(self) -> bool:
        """Whether it is at hand as rows only."""
        return bool(self.flat) and not self.name


class Extents:
    """Shapes at run time."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.symbols: dict[Any, tuple[str, int]] = {}
        """The input and its axis at which an extent can be read."""
        self.derived: dict[Any, Any] = {}
        """Extents that are computed from others and not read."""

    def learn(self, name: str, shape: Shape) -> None:
        """Takes note of the extents of an input."""
        for axis, size in enumerate(shape):
            if isinstance(size, sympy.Symbol):
                self.symbols.setdefault(size, (name, axis))

    def shape(self, wanted: Shape, given: Shape = ()) -> str:
        """`wanted` as a vector, of what has the shape `given` where that is known."""
        vector: list[Any] = [
            0 if not isinstance(size, int) and index < len(given) and given[index] == size else size
            for index, size in enumerate(wanted)
        ]
        unknown = [index for index, size in enumerate(vector) if not isinstance(size, int)]
        if len(unknown) == 1:
            vector[unknown[0]] = -1
        if len(unknown) <= 1:
            return self.builder.integers(vector)
        return self.vector(wanted)

    def vector(self, sizes: Sequence[Extent]) -> str:
        """Extents as a vector of their values."""
        if all(isinstance(size, int) for size in sizes):
            return self.builder.integers(sizes)
        parts: list[str] = []
        known: list[int] = []
        for size in sizes:
            if isinstance(size, int):
                known.append(size)
                continue
            if known:
                parts.append(self.builder.integers(known))
                known = []
            parts.append(self.one(size))
        if known:
            parts.append(self.builder.integers(known))
        return parts[0] if len(parts) == 1 else self.builder.call("Concat", parts, axis=0)

    def one(self, size: Extent) -> str:
        """An extent as a vector of one number."""
        if isinstance(size, int) or size.is_Integer:
            return self.builder.integers([int(size)])
        if size in self.derived:
            return self.one(self.derived[size])
        if size in self.symbols:
            name, axis = self.symbols[size]
            return self.builder.call("Shape", [name], start=axis, end=axis + 1)
        kinds: dict[Any, str] = {sympy.Add: "Add", sympy.Mul: "Mul", FloorDiv: "Div"}
        kind = kinds.get(size.func)
        assert kind is not None, f"no way to compute the extent {size}"
        first, *others = size.args
        found = self.one(first)
        for other in others:
            found = self.builder.call(kind, [found, self.one(other)])
        return found

    def scalar(self, size: Extent) -> str:
        """An extent as a number without dimensions."""
        if isinstance(size, int):
            return self.builder.number(size, torch.int64)
        return self.builder.call("Squeeze", [self.one(size), self.builder.integers([0])])
