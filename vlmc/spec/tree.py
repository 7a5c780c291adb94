"""A document as a tree of values, each with the place where it was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vlmc.diagnostics import Span

Value = str | int | float | bool | None


@dataclass(slots=True)
class Scalar:
    """A leaf."""

    value: Value
    span: Span
    quoted: bool = False


@dataclass(slots=True)
class Sequence:
    """A list."""

    items: list[Tree]
    span: Span


@dataclass(slots=True)
class Mapping:
    """A mapping; `keys` holds the place of each key."""

    entries: dict[str, Tree]
    span: Span
    keys: dict[str, Span] = field(default_factory=dict[str, Span])


Tree = Scalar | Sequence | Mapping


def plain(tree: Tree) -> Any:
    """The tree as ordinary Python values."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, Sequence):
        return [plain(item) for item in tree.items]
    return {key: plain(value) for key, value in tree.entries.items()}
