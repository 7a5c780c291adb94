"""Where a chain is cut whose groups hold several stages each: what one of them leaves of a device
is what the others have."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, nextafter

from vlmc.partition.cuts import Cutter, Fits, heaviest, last_within

TRIES = 60
"""Ends of stages that are tried for one setting, and of each stage as many as EACH beside them."""
EACH = 2
MOST_TRIES = 10_000
"""Those of a whole search: 0.2 ms each on chains of a hundred blocks."""
SHARES = (1.0, 0.9)
"""Of a device's room: what cuts to begin with may take if stages are alike, which they are not."""

Room = Callable[[Sequence[int]], bool]
"""Whether the group of the last of the stages with these ends has room for those that are its."""


@dataclass(slots=True)
class Effort:
    """What a search may still try, and what it has not looked at."""

    tries: int = MOST_TRIES
    missed: float = inf
    """Seconds that no cuts which were not looked at beat."""


@dataclass(frozen=True, slots=True)
class Together:
    """The ends of stages, of which the heaviest is the lightest that was found; None where none
    was."""

    ends: tuple[int, ...] | None
    missed: float = inf
    """No cuts that were not looked at are lighter; infinite where all were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """What pipeline groups have room for."""

    room: Room
    alike: Callable[[float], Fits]
    """Whether a share of a device is room for a stretch in the place of each of a group's stages,
    which gives cuts to begin with."""
    enough: Callable[[float], bool]
    """False where all devices together have no room for stages that weigh so much at the most."""


def least_together(
    cutter: Cutter, weights: Sequence[float], groups: Groups, under: float, effort: Effort
) -> Together:
    """As `Cutter.least`, of cuts for which groups have room."""
    if not groups.enough(under):
        return Together(None)
    fastest = replace(cutter, fits=_anywhere).least(weights, under=under)
    if fastest is None:
        return Together(None)
    low, ends = fastest
    if _fit(groups.room, ends):
        return Together(ends)
    best, known = _begin(cutter, weights, groups, under)
    tries = _Tries(cutter, weights, groups, effort)
    limit = under if known is None else _between(low, best)
    while low < best:
        found = tries.within(limit)
        if isinstance(found, tuple):
            best, known = heaviest(weights, found), found
        elif tries.left <= 0:
            return Together(known, low)
        else:
            low = max(low, found)
        limit = _between(low, best)
    return Together(known)


def _begin(
    cutter: Cutter, weights: Sequence[float], groups: Groups, under: float
) -> tuple[float, tuple[int, ...] | None]:
    """Cuts to begin with, and their heaviest stage."""
    for share in SHARES:
        alike = replace(cutter, fits=groups.alike(share), thorough=False)
        found = alike.least(weights, under=under)
        if found is None:
            break
        if _fit(groups.room, found[1]):
            return found
    return under, None


def _between(low: float, high: float) -> float:
    return max(low, min((low + high) / 2, nextafter(high, 0.0)))


def _fit(room: Room, ends: Sequence[int]) -> bool:
    return all(room(ends[: stage + 1]) for stage in range(len(ends)))


def _anywhere(stage: int, first: int, end: int) -> bool:
    return True


class _Tries:
    """Cuts tried from the first stage on, the longest first."""

    def __init__(
        self, cutter: Cutter, weights: Sequence[float], groups: Groups, effort: Effort
    ) -> None:
        self.cutter, self.weights, self.groups, self.effort = cutter, weights, groups, effort
        self._own = TRIES + EACH * cutter.stages

    @property
    def left(self) -> int:
        """Ends that may still be tried."""
        return min(self._own, self.effort.tries)

    def within(self, limit: float) -> tuple[int, ...] | float:
        """Ends of stages within the limit; else the least limit at which more is possible, unless
        nothing is left to try."""
        if not self.groups.enough(limit):
            return nextafter(limit, inf)
        self._limit, self._following = limit, inf
        self._starts = self._least_starts()
        self._ends: list[int] = []
        found = bool(self._starts) and self._from(0, 0)
        return tuple(self._ends) if found else self._following

    def _least_starts(self) -> list[int]:
        """By stage, the first place where it may begin so that this one and those behind it reach
        the end of the chain, were each alone on its device; nothing where there is none."""
        allowed, starts = [0, *self.cutter.allowed], [self.cutter.length]
        for stage in reversed(range(self.cutter.stages)):
            end = starts[-1]
            low, most = -1, bisect_left(allowed, end)
            high = most
            while high - low > 1:
                middle = (low + high) // 2
                first = allowed[middle]
                over = self.weights[end] - self.weights[first]
                if over <= self._limit and self.cutter.fits(stage, first, end):
                    high = middle
                else:
                    low = middle
            if low >= 0:
                over = self.weights[end] - self.weights[allowed[low]]
                if over > self._limit:
                    self._following = min(self._following, over)
            if high == most > 0:
                return []
            starts.append(allowed[high])
        return starts[::-1]

    def _from(self, stage: int, start: int) -> bool:
        cutter, allowed = self.cutter, self.cutter.allowed
        if stage == cutter.stages:
            return start == cutter.length
        least, most = cutter.window(stage, start)
        if most < least:
            return False
        reach = last_within(self.weights, start, self._limit, allowed, least, most)
        if reach < most:
            over = self.weights[allowed[reach + 1]] - self.weights[start]
            self._following = min(self._following, over)
        for place in range(cutter.fitting_place(stage, start, least, reach), least - 1, -1):
            end = allowed[place]
            if end < self._starts[stage + 1] or self.left <= 0:
                return False
            self._own -= 1
            self.effort.tries -= 1
            self._ends.append(end)
            if self.groups.room(self._ends) and self._from(stage + 1, end):
                return True
            self._ends.pop()
        return False
