"""Rates over sizes of work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmc.calibration.measured import Rates
from vlmc.calibration.timing import LONGEST_SECONDS, seconds

SIDES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SIZES = tuple(2**power for power in range(12, 34, 2))
"""Bytes of a tensor."""
ROWS = (1, 2, 8, 32, 128)
"""Of a product when serving: one for each sequence that takes a token, or a prompt's."""
WIDTHS = (128, 256, 512, 1024, 2048, 4096)
"""Of its weights."""
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Positions of a sequence."""
BATCH, HEADS, HEAD_DIM = 4, 8, 64
"""Of attention."""
PARAMETERS = (2**8, 2**12, 2**16, 2**20, 2**22, 2**24)
"""Numbers of a parameter."""
ROW = 256
"""Numbers of a row that is normed."""
AROUND = 2**26
"""Bytes of operands and results among which work goes round: more than a processor's cache."""
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CURVE_POINTS = 5
"""Sizes that must have been measured for a curve, however long they take."""


class Progress(Protocol):
    """Told what is being measured."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


class Bench:
    """A device of which `room` bytes may be taken."""

    def __init__(self, device: str, room: int, tell: Progress) -> None:
        self.device, self.room, self.tell = device, room, tell
        # A chunk as large as malloc keeps for itself, as it has in a process that trains.
        torch.empty(2**25 - 2**16, dtype=torch.uint8, device=device)
        self.sizes = _bounded(SIZES, room // 8, 2**28 if device == "cpu" else 2**32)

    def least_seconds(self) -> float:
        """Of an operator on next to nothing."""
        one = torch.ones(16, device=self.device)
        return seconds(lambda _: one - one, self.device)

    def bandwidth(self) -> float:
        """The rate of reading the largest tensor; on a GPU, where a reduction is no measure, of
        copying it."""
        size = self.sizes[-1]
        one = torch.ones(size // 4, device=self.device)
        if self.device == "cuda":
            return 2 * size / seconds(lambda _: one.clone(), self.device)
        return size / seconds(lambda _: one.sum(), self.device)

    def memory(self, *, kept: bool = True) -> Rates:
        """The rate of subtracting one result from the one before (so that what was just written is
        read again), by the bytes that are moved. `kept`: as in a step that keeps its results."""
        moving: list[tuple[float, float]] = []
        for done, size in enumerate(self.sizes):
            self.tell("memory", done, len(self.sizes))
            last = [torch.ones(size // 4, device=self.device) for _ in range(2)]

            def subtract(_: int, last: list[Tensor] = last) -> Tensor:
                last[:] = last[1], last[0] - last[1]
                return last[1]

            moved = 3 * size
            held = _held(size) if kept else 1
            moving.append((moved, moved / seconds(subtract, self.device, held)))
        return tuple(moving)

    def functions(self, *, kept: bool = True) -> Rates:
        """The mean of GELU, softmax and layer norm, by the bytes that each moves."""
        curve: list[tuple[float, float]] = []
        for done, size in enumerate(self.sizes):
            self.tell("functions", done, len(self.sizes))
            rows = torch.randn(size // 4 // ROW, ROW, device=self.device)
            work: tuple[Callable[[int], Tensor], ...] = (
                lambda _, x=rows: F.gelu(x),
                lambda _, x=rows: F.softmax(x, -1),
                lambda _, x=rows: F.layer_norm(x, (ROW,)),
            )
            held = _held(size) if kept else 1
            taken = sum(seconds(one, self.device, held) for one in work) / len(work)
            curve.append((2 * size, 2 * size / taken))
            if self._long(taken * 4, curve):
                break
        return tuple(curve)

    def products(self, name: str) -> Rates:
        """The rate of a linear layer's three products with square matrices, by the FLOPs of one:
        forward, for the gradient of what it was given, for that of its weights."""
        curve: list[tuple[float, float]] = []
        for done, side in enumerate(SIDES):
            self.tell(f"products in {name}", done, len(SIDES))
            if 4 * max(AROUND, 4 * side * side) > self.room // 2:
                break
            size = side * side * FORMATS[name].itemsize
            held = _held(size)
            numbers = torch.randn(held, side, side, device=self.device).to(FORMATS[name])
            x = numbers[0].clone()
            work: tuple[Callable[[int], Tensor], ...] = (
                lambda turn, n=held, x=x, w=numbers: x @ w[turn % n].t(),
                lambda turn, n=held, x=x, w=numbers: x @ w[turn % n],
                lambda turn, n=held, x=x, g=numbers: g[turn % n].t() @ x,
            )
            taken = sum(seconds(one, self.device, held) for one in work) / len(work)
            curve.append((2.0 * side**3, 2.0 * side**3 / taken))
            if self._long(taken * 8, curve):
                break
        return tuple(curve)

    def attention(self, number: torch.dtype) -> tuple[Rates, Rates]:
        """The rates of fused attention and of its backward pass, by FLOPs: two products of each
        head and five."""
        forward: list[tuple[float, float]] = []
        backward: list[tuple[float, float]] = []
        for done, length in enumerate(LENGTHS):
            self.tell("attention", done, len(LENGTHS))
            # Heads lie side by side in each position, as projections leave them.
            shape = (BATCH, length, HEADS, HEAD_DIM)
            query, key, value, gradient = (
                torch.randn(shape, device=self.device, dtype=number).transpose(1, 2)
                for _ in range(4)
            )
            held = _held(gradient.nbytes)
            product = 2.0 * BATCH * HEADS * length**2 * HEAD_DIM

            def attend(_: int, q: Tensor = query, k: Tensor = key, v: Tensor = value) -> Tensor:
                return F.scaled_dot_product_attention(q, k, v)

            taken = seconds(attend, self.device, held)
            forward.append((2 * product, 2 * product / taken))
            with torch.enable_grad():
                asked = [one.requires_grad_() for one in (query, key, value)]
                out = attend(0)
            back = seconds(
                lambda _, o=out, a=asked, g=gradient: torch.autograd.grad(
                    o, a, g, retain_graph=True
                ),
                self.device,
                held,
            )
            backward.append((5 * product, 5 * product / back))
            if self._long(back * 4, backward):
                break
        return tuple(forward), tuple(backward)

    def rows(self, count: int, number: torch.dtype) -> Rates:
        """The rate of a product of so many rows with square weights that no cache holds, by the
        bytes of its operands and its result."""
        curve: list[tuple[float, float]] = []
        for done, side in enumerate(WIDTHS):
            self.tell(f"products of {count} rows", done, len(WIDTHS))
            size = side * side * number.itemsize
            if 4 * max(AROUND, size) > self.room // 2:
                break
            held = _held(size)
            weights = torch.randn(held, side, side, device=self.device).to(number)
            x = torch.randn(count, side, device=self.device).to(number)
            moved = size + 2 * x.nbytes
            taken = seconds(
                lambda turn, n=held, x=x, w=weights: F.linear(x, w[turn % n]), self.device
            )
            curve.append((moved, moved / taken))
            if self._long(taken * 4, curve):
                break
        return tuple(curve)

    def cache(self, number: torch.dtype) -> tuple[Rates, Rates]:
        """The rates of adding a token to keys that were used a while ago, and of fused attention of
        one query to keys and values that a token was just added to, by the bytes that each moves.
        """
        adding: list[tuple[float, float]] = []
        reading: list[tuple[float, float]] = []
        for done, length in enumerate((1, *LENGTHS)):
            self.tell("attention of one query", done, len(LENGTHS) + 1)
            size = BATCH * HEADS * length * HEAD_DIM * number.itemsize
            held = max(2, _held(size))
            shape = (held, BATCH, HEADS, length, HEAD_DIM)
            before = torch.randn(shape, device=self.device).to(number)
            query = torch.randn(BATCH, 1, HEADS, HEAD_DIM, device=self.device).to(number)
            query = query.transpose(1, 2)

            def add(turn: int, b: Tensor = before, n: Tensor = query) -> tuple[Tensor, Tensor]:
                key, value = b[2 * turn % len(b)], b[(2 * turn + 1) % len(b)]
                return torch.cat((key, n), dim=2), torch.cat((value, n), dim=2)

            def attend(turn: int, q: Tensor = query, add: Any = add) -> Tensor:
                return F.scaled_dot_product_attention(q, *add(turn))

            alone, both = (seconds(one, self.device) for one in (add, attend))
            moved = 2 * (size + query.nbytes)
            adding.append((moved, 2 * moved / alone))
            reading.append((moved + 2 * query.nbytes, moved / max(both - alone, alone / 10)))
        return tuple(adding), tuple(reading)

    def adamw(self) -> Rates:
        """How many numbers of a parameter AdamW updates a second, by the size of the parameter."""
        curve: list[tuple[float, float]] = []
        for done, numbers in enumerate(PARAMETERS):
            self.tell("adamw", done, len(PARAMETERS))
            if 64 * numbers > self.room // 2:
                break
            count = max(2, min(64, _held(16 * numbers)))
            with torch.enable_grad():
                parameters = [
                    torch.ones(numbers, device=self.device, requires_grad=True)
                    for _ in range(count)
                ]
                for one in parameters:
                    one.grad = torch.ones_like(one)
            optimiser: Any = torch.optim.AdamW(parameters, lr=1e-6)
            taken = seconds(lambda _, o=optimiser: o.step(), self.device) / count
            curve.append((numbers, numbers / taken))
            if self._long(taken * count * 4, curve):
                break
        return tuple(curve)

    def _long(self, next_seconds: float, curve: list[tuple[float, float]]) -> bool:
        """Whether the next size would take too long, and there are enough."""
        return next_seconds > LONGEST_SECONDS and len(curve) >= CURVE_POINTS


def _held(size: int) -> int:
    """Tensors of `size` bytes among which work goes round."""
    return max(1, min(4096, AROUND // size))


def _bounded(sizes: Iterable[int], *most: int) -> list[int]:
    """Sizes up to the least of `most`, the smallest in any case."""
    every = list(sizes)
    return [size for size in every if size <= min(most)] or every[:1]
