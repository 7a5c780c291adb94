"""A deployable graph: what it takes and gives, and where its constants come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.export import ExportedProgram

from vlmc.ir import Dim

Number = Literal["float", "int", "bool"]
"""float: the number format of the weights; int: 64 bits."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A tensor that goes into a graph or comes out of it."""

    name: str
    dims: tuple[Dim, ...]
    """Extents; those that vary from call to call by their names."""
    number: Number = "float"
    written: bool = False
    """Whether the graph writes into it in place: a cache of fixed size, the logits of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of a model's work that becomes one graph, before it is captured.

    `body` takes the tensors of `inputs` in order and returns those of `outputs` in order.
    """

    name: str
    body: nn.Module
    inputs: tuple[Wire, ...]
    outputs: tuple[Wire, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A constant whose values are weights of the model: one of them, or several that are joined
    along their first dimension."""

    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A small constant that follows from weights alone, such as tanh of a gate. It is computed when
    an artifact is written, since a captured graph holds no values."""

    parts: tuple[str, ...]
    """The weights that it is computed from."""
    compute: Callable[..., Tensor]
    """From the values of `parts`, in their order."""


Constant = Stored | Folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A captured stage: its program takes the constants first and `inputs` after them.

    The program's own constants hold no values; `constants` says of each of them, by its name in the
    program, where its values come from.
    """

    name: str
    program: ExportedProgram
    inputs: tuple[Wire, ...]
    outputs: tuple[Wire, ...]
    bounds: Mapping[str, tuple[int, int]]
    """The least and the largest value of each extent that varies."""
    constants: Mapping[str, Constant]
