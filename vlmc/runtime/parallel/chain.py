"""A model as a chain of steps, so that it can be cut anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

State = dict[str, Tensor]
"""What one step leaves to the next: image (within the encoder), features, latents (within the
adapter), visual, x, encoded, loss; hidden states [rows, tokens, width]."""
Data = dict[str, Any]
"""What every stage knows of a micro-batch: see `vlmc.runtime.parallel.batches`."""
Run = Callable[[Any, State, Data], State]
"""Runs a step of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of the model that is never cut."""

    name: str
    """Path of the block, or what stands before or after a stack: as in a plan."""
    owns: tuple[str, ...]
    """Paths of the parameters that it reads, or of modules that hold them."""
    run: Run
    block: str | None = None
    """Path of the module that is a unit of its own: for sharding and for checkpointing."""
    look: Callable[..., Tensor] | None = None
    """A method that the block is given, called in place of its forward: keys and values of what it
    looks at are made within it."""


def whole(name: str, run: Run, *owns: str) -> Step:
    """A step that no unit of its own belongs to, reading `owns`."""
    return Step(name=name, owns=owns, run=run)


def unit(path: str, run: Run, look: Callable[..., Tensor] | None = None, *more: str) -> Step:
    """A step that is one block."""
    return Step(name=path, owns=(path, *more), run=run, block=path, look=look)


def passed(state: State, *gone: str, **new: Tensor) -> State:
    """The state without `gone`, with `new`."""
    return {**{name: value for name, value in state.items() if name not in gone}, **new}


def numbered(count: int, step: Callable[[int], Step]) -> list[Step]:
    """The steps of a stack."""
    return [step(index) for index in range(count)]


def at(run: Callable[[int, Any, State, Data], State], index: int) -> Run:
    """A step's function for one block of a stack."""
    return partial(run, index)
