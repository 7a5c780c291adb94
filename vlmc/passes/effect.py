"""What a pass did to a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlmc.capture.program import Draft

Pass = Callable[[Draft], str]
"""Edits a draft in place; says in a line what it did, and nothing where there was nothing to do."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A pass that changed a graph."""

    pass_name: str
    graph_name: str
    text: str


def counted(number: int, noun: str) -> str:
    """`1 linear`, `2 linears`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def amount(number: int) -> str:
    """A number of values, to three digits: 950, 12.3k, 1.25M, 7.1B."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
