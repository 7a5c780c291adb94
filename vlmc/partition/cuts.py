"""Where a chain is cut into stages: exactly the cut whose heaviest stage is lightest.

A stage takes as much of the chain as a limit allows (Han, Narahari and Choi, 1992): what is allowed
to a stretch is allowed to each part of it, so that a longer start does not hurt what follows (but
for blocks that only some stages have room for: then all starts are tried). Failing tells the next
limit at which anything changes, so that bisection ends at the exact optimum.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, nextafter

Fits = Callable[[int, int, int], bool]
"""Whether a stage may hold the blocks [first, end) of the chain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutter:
    """Cuts a chain of `length` blocks into `stages` that are not empty.

    `allowed`: places of cuts, rising, `length` last. `barrier`: a place that no stage crosses, with
    another stage on each side. Each part of what fits on a stage fits on it, too.
    """

    length: int
    stages: int
    allowed: Sequence[int]
    fits: Fits
    barrier: int | None = None
    thorough: bool = True
    """Whether all starts are tried where some stages alone have room for a block."""

    def least(
        self,
        weights: Sequence[float],
        *,
        under: float = inf,
        other: Sequence[float] | None = None,
        cap: float = inf,
    ) -> tuple[float, tuple[int, ...]] | None:
        """The lightest heaviest stage, not above `under`, and the ends of its stages; None where
        there is none. `weights`: sums before each block, and of all. Every stage weighs at most
        `cap` by `other`."""
        if self.stages > len(self.allowed):
            return None
        first = self._greedy(weights, under, other, cap)
        if not isinstance(first, tuple):
            return None
        best, ends = heaviest(weights, first), first
        low = weights[-1] / self.stages * (1 - 1e-12)
        while low < best:
            middle = max(low, min((low + best) / 2, nextafter(best, 0.0)))
            found = self._greedy(weights, middle, other, cap)
            if isinstance(found, tuple):
                best, ends = min(best, heaviest(weights, found)), found
            else:
                low = found
        return best, ends

    def fitting(self) -> tuple[int, ...] | None:
        """The ends of stages that fit, whatever they weigh; None where there are none."""
        if self.stages > len(self.allowed):
            return None
        found = self._greedy([0.0] * (self.length + 1), inf, None, inf)
        return found if isinstance(found, tuple) else None

    def front(
        self, one: Sequence[float], two: Sequence[float], under: float, cap: float
    ) -> Iterator[tuple[float, float, tuple[int, ...]]]:
        """All best exchanges between the heaviest stage by `one`, at most `under`, and by `two`, at
        most `cap`: the first rises, the second falls."""
        while True:
            lightest = self.least(one, under=under, other=two, cap=cap)
            if lightest is None:
                return
            second = self.least(two, under=cap, other=one, cap=lightest[0])
            weight, ends = second or (heaviest(two, lightest[1]), lightest[1])
            yield lightest[0], weight, ends
            cap = nextafter(weight, 0.0)

    def _greedy(
        self, weights: Sequence[float], limit: float, other: Sequence[float] | None, cap: float
    ) -> tuple[int, ...] | float:
        """Ends of stages within the limit, or the least limit at which more is possible."""
        allowed, ends, start, following = self.allowed, list[int](), 0, inf
        for stage in range(self.stages):
            least, most = self.window(stage, start)
            if most < least:
                return following
            reach = last_within(weights, start, limit, allowed, least, most)
            if reach < most:
                following = min(following, weights[allowed[reach + 1]] - weights[start])
            if other is not None:
                reach = last_within(other, start, cap, allowed, least, reach)
            timely, reach = reach, self.fitting_place(stage, start, least, reach)
            if reach < least:
                if not self.thorough or timely < least or self._nowhere(start, allowed[least]):
                    return following
                return self._exhaustive(weights, limit, other, cap)
            start = allowed[reach]
            ends.append(start)
        return tuple(ends)

    def _nowhere(self, start: int, end: int) -> bool:
        """Whether no stage has room for a stretch."""
        return not any(self.fits(stage, start, end) for stage in range(self.stages))

    def _exhaustive(
        self, weights: Sequence[float], limit: float, other: Sequence[float] | None, cap: float
    ) -> tuple[int, ...] | float:
        """As `_greedy`, from every place where a stage can start: where a stage has no room for a
        block that another has room for, the longest start may leave it nothing else."""
        allowed, following = self.allowed, inf
        layers: list[dict[int, int]] = [{0: 0}]
        for stage in range(self.stages):
            ends: dict[int, int] = {}
            for start in layers[-1]:
                least, most = self.window(stage, start)
                if most < least:
                    continue
                reach = last_within(weights, start, limit, allowed, least, most)
                if reach < most:
                    following = min(following, weights[allowed[reach + 1]] - weights[start])
                if other is not None:
                    reach = last_within(other, start, cap, allowed, least, reach)
                reach = self.fitting_place(stage, start, least, reach)
                for place in range(least, reach + 1):
                    ends.setdefault(allowed[place], start)
            layers.append(ends)
        if self.length not in layers[-1]:
            return following
        found = [self.length]
        for layer in reversed(layers[2:]):
            found.append(layer[found[-1]])
        return tuple(reversed(found))

    def window(self, stage: int, start: int) -> tuple[int, int]:
        """The first and the last place in `allowed` where the stage may end."""
        least = bisect_right(self.allowed, start)
        most = len(self.allowed) - (self.stages - stage)
        if stage == self.stages - 1:
            least = max(least, most)
        if self.barrier is not None and start < self.barrier:
            most = min(most, bisect_right(self.allowed, self.barrier) - 1)
        return least, most

    def fitting_place(self, stage: int, start: int, least: int, most: int) -> int:
        """The last place up to which the stage fits; `least` - 1 where there is none."""
        if most < least or self.fits(stage, start, self.allowed[most]):
            return most
        low, high = least - 1, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(stage, start, self.allowed[middle]):
                low = middle
            else:
                high = middle
        return low


def last_within(
    weights: Sequence[float],
    start: int,
    limit: float,
    allowed: Sequence[int],
    least: int,
    most: int,
) -> int:
    """The last place within the limit; `least` - 1 where there is none."""
    low, high, base = least - 1, most + 1, weights[start]
    while high - low > 1:
        middle = (low + high) // 2
        if weights[allowed[middle]] - base <= limit:
            low = middle
        else:
            high = middle
    return low


def heaviest(weights: Sequence[float], ends: Sequence[int]) -> float:
    return max(weights[end] - weights[start] for start, end in pairwise((0, *ends)))
