"""What a run of a model does, operator by operator, and which storages live when.

Tensors hold shapes alone (the meta device), so nothing is computed and nothing is allocated.
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlmc.analysis.operators import Memory, storage_key, tensors

_INTERNAL: Any = torch._C  # pyright: ignore[reportPrivateUsage]
"""Where autograd says which node runs, and how many nodes there were before it."""

Pass = Literal["forward", "backward", "recompute"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an operator; storages by their numbers in order of allocation."""

    path: str
    """Of the innermost module that it belongs to."""
    during: Pass
    packet: str
    matmul: bool
    takes: tuple[int, ...]
    makes: tuple[int, ...]
    weight_half: bool = False
    """Whether it is the share of a convolution's backward pass that gives gradients of weights."""


@dataclass(frozen=True, slots=True)
class Allocated:
    """A storage comes to life."""

    path: str
    during: Pass
    number: int


@dataclass(frozen=True, slots=True)
class Freed:
    """A storage dies."""

    number: int


Event = Call | Allocated | Freed


@dataclass(slots=True)
class Record:
    """One run: what happened, and the figures of each event: (FLOPs, bytes moved) of a call, the
    bytes of an allocation."""

    events: list[Event] = field(default_factory=list[Event])
    figures: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    gradients: frozenset[int] = frozenset()
    """Storages that are gradients of parameters in the end."""
    flows: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Bytes of the first tensor that each module takes and of the tensor that it gives."""
    sources: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """By attention whose keys and values are made of another tensor than its queries: bytes of
    that one, and again if gradients pass through it."""


class Recorder(TorchDispatchMode):
    """Records what runs within it. `mark` names what glue between modules belongs to."""

    def __init__(self, model: Any, memory: Memory) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._memory = memory
        self.record = Record()
        self._model = model
        self._paths = [""]
        self._starts: list[int] = []
        self._owners: list[str] = []
        self._backward = False
        self._before = ""
        self._last: tuple[int, str] = (-1, "")
        self._live: dict[int, int] = {}
        self._references: dict[int, Any] = {}
        self._given = 0
        self._sources: dict[str, tuple[Any, int, int]] = {}

    def give(self, tensors: Sequence[Tensor]) -> None:
        """Storages that are there before: inputs and parameters. They are never recorded."""
        for tensor in tensors:
            self._given -= 1
            self._live[storage_key(tensor)] = self._given

    @contextmanager
    def inside(self, path: str) -> Generator[None]:
        """What runs within belongs to `path`, unless a module that is called says otherwise."""
        self._enter(path)
        try:
            yield
        finally:
            self._leave()

    def backward(self, loss: Any) -> None:
        """Runs the backward pass, within this mode."""
        self._backward = True
        loss.backward()
        self.record.gradients = frozenset(
            self._live[storage_key(parameter.grad)]
            for parameter in self._model.parameters()
            if parameter.grad is not None
        )

    def finish(self) -> Record:
        """What was recorded; what dies from now on is no longer."""
        self._references.clear()
        return self.record

    def reads(self, path: str, source: Tensor) -> None:
        """An attention makes keys and values of a tensor, before it is called."""
        size = source.nbytes
        self._sources[path] = (weakref.ref(source), size, size if source.requires_grad else 0)

    def called(self, path: str, given: Sequence[object]) -> None:
        """A module of the model is called."""
        source = self._sources.pop(path, None)
        if source is not None and source[0]() is not given[0] and not self._backward:
            self.record.sources[path] = source[1:]
        self._enter(path)

    def returned(self, path: str, given: object, made: object) -> None:
        """A module of the model returns, or fails."""
        self._leave()
        if not self._backward:
            self.record.flows[path] = (_first(given), _first(made))

    def _enter(self, path: str) -> None:
        self._paths.append(path)
        self._note(path)

    def _leave(self) -> None:
        left = self._paths.pop()
        # Glue between two modules of a part belongs to the one before.
        self._note(self._paths[-1] if "." in self._paths[-1] else left)

    def _note(self, path: str) -> None:
        self._before = path
        if not self._backward:
            self._starts.append(_INTERNAL._autograd._get_sequence_nr())
            self._owners.append(path)

    def _where(self) -> tuple[str, Pass]:
        if not self._backward:
            return self._before, "forward"
        if len(self._paths) > 1:
            return self._paths[-1], "recompute"
        node = _INTERNAL._current_autograd_node()
        if node is not None and not node.name().endswith("AccumulateGrad"):
            number = node._sequence_nr()
            if number != self._last[0]:
                index = bisect.bisect_right(self._starts, number) - 1
                self._last = (number, self._owners[max(index, 0)])
            self._before = self._last[1]
        return self._before, "backward"

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._memory.is_view(func):
            return func(*args, **kwargs)
        out, cost = self._memory.run(func, args, kwargs)
        if cost is None:
            return out
        path, during = self._where()
        takes = tuple(self._live.get(storage_key(one), 0) for one in tensors((args, kwargs)))
        makes = tuple(self._number(one, path, during) for one in tensors(out))
        name = str(func.overloadpacket)
        if cost.halves is None:
            self.record.events.append(Call(path, during, name, cost.matmul, takes, makes))
            self.record.figures.append((cost.flops, cost.bytes))
            return out
        for weight, flops in zip((False, True), cost.halves, strict=True):
            call = Call(path, during, name, True, takes, makes, weight_half=weight)
            self.record.events.append(call)
            self.record.figures.append((flops, 0 if weight else cost.bytes))
        return out

    def _number(self, tensor: Tensor, path: str, during: Pass) -> int:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key not in self._live:
            number = len(self._references) + 1
            self._live[key] = number
            self._references[number] = weakref.ref(storage, self._freeing(key, number))
            self.record.events.append(Allocated(path, during, number))
            self.record.figures.append((storage.nbytes(),))
        return self._live[key]

    def _freeing(self, key: int, number: int) -> Callable[[object], None]:
        def freed(_: object) -> None:
            del self._live[key]
            self.record.events.append(Freed(number))
            self.record.figures.append(())

        return freed


def _first(value: Any) -> int:
    return next((one.nbytes for one in tensors(value)), 0)
