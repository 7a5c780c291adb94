"""`Arch`: a design with everything inferred, as a frozen graph of parts without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from vlmc.ir.types import TensorType

Role = Literal["encoder", "select", "adapter", "fusion", "language", "head"]
ROLES: tuple[Role, ...] = ("encoder", "select", "adapter", "language", "fusion", "head")
"""Every role a part can play, in the order in which data meets them."""

Serving = Literal["sequence", "cross_attention", "encoder_decoder", "single_pass"]
"""How vision reaches the language model at run time: among the words of a decoder, as keys and
values that it looks at, through an encoder, or in one pass that generates nothing."""

Argument = int | float | str | bool | None | tuple[int, ...] | tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A named input or output of a node."""

    name: str
    type: TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One part of the model: what it is, what it takes and gives, and what it costs."""

    role: Role
    kind: str
    arguments: Mapping[str, Argument]
    """Keyword arguments of the part's module: every value resolved."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: Mapping[str, int]
    """Parameters by child of the module (`layers`, `norm`, ...)."""
    frozen: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    @property
    def count(self) -> int:
        """Parameters of the whole part."""
        return sum(self.parameters.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """An output that feeds an input. `source` and `target` read `role.port`; `input.port` and
    `output.port` are the model's own."""

    source: str
    target: str
    type: TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Where the sequence goes, by the declared budget. All counts are tokens."""

    images: int
    per_image: int
    """Visual tokens that one image becomes after the adapter."""
    in_sequence: int
    """Positions of the language model's sequence that one image takes."""
    text: int
    sequence: int
    """The longest sequence of the budget: text plus what the images take of it."""
    context: int | None
    """Positions that the language model has; None where it has no bound."""
    memory: int
    """Visual tokens that are attended to from outside the sequence (cross-attention)."""


ROWS = 64
"""Sequences that graphs take at once where the target's workload has no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arch:
    """A whole design, resolved."""

    name: str
    about: str = ""
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    tokens: Tokens
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    serving: Serving = "sequence"
    batch: int = ROWS
    """Sequences that graphs take at once, at most."""
    mini: bool = False

    def node(self, role: Role) -> Node:
        """The part that plays `role`. Raises KeyError where the design has none."""
        for node in self.nodes:
            if node.role == role:
                return node
        raise KeyError(role)

    def has(self, role: Role) -> bool:
        """Whether the design has a part for `role`."""
        return any(node.role == role for node in self.nodes)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(node.count for node in self.nodes)

    @property
    def trainable_parameters(self) -> int:
        """Parameters of the parts that are not frozen."""
        return sum(node.count for node in self.nodes if not node.frozen)
