"""A recorded run cut into visits of blocks, with what each does to the memory's level."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vlmc.analysis.fit import Fit
from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import Level
from vlmc.analysis.run import Runs
from vlmc.analysis.segments import Segments
from vlmc.analysis.trace import Allocated, Freed

Where = tuple[str, int]
"""A block's name and its number in the shallow design's stack."""
Values = tuple[int, ...]
"""A figure at each point of a fit."""


@dataclass(slots=True)
class Stretch:
    """Consecutive events of one block."""

    where: Where
    forward: bool
    start: Values
    tops: list[tuple[Values, int]] = field(default_factory=list[tuple[Values, int]])
    end: Values = ()
    gradients: int = 0


def stretches(runs: Runs, segments: Segments) -> list[Stretch]:
    """The run, stretch by stretch; levels leave out gradients of parameters."""
    points = range(len(runs.records))
    sizes: dict[int, Values] = {}
    level: Values = tuple(0 for _ in points)
    found: list[Stretch] = []
    gradients = runs.first.gradients
    for index, event in enumerate(runs.first.events):
        if isinstance(event, Freed):
            if event.number not in gradients:
                level = _less(level, sizes[event.number])
            continue
        where, forward = segments(event.path), event.during == "forward"
        if not found or (found[-1].where, found[-1].forward) != (where, forward):
            if found:
                found[-1].end = level
            found.append(Stretch(where, forward, level))
        if isinstance(event, Allocated):
            values = tuple(runs.records[p].figures[index][0] for p in points)
            sizes[event.number] = values
            if event.number in gradients:
                found[-1].gradients += values[0]
            else:
                level = tuple(a + b for a, b in zip(level, values, strict=True))
            found[-1].tops.append((level, found[-1].gradients))
    if found:
        found[-1].end = level
    return found


def level(stretch: Stretch, fit: Fit) -> Level:
    """A stretch's effect, as polynomials."""
    found = {(_less(top, stretch.start), gradients) for top, gradients in stretch.tops}
    tops = highest((fit(top), gradients) for top, gradients in found)
    return Level(fit(_less(stretch.end, stretch.start)), tops)


def highest(tops: Iterable[tuple[Polynomial, int]]) -> tuple[tuple[Polynomial, int], ...]:
    """Those that are not below another at all sizes."""
    kept: list[tuple[Polynomial, int]] = []
    for one in set(tops):
        if any(_below(one, other) for other in kept):
            continue
        kept = [other for other in kept if not _below(other, one)]
        kept.append(one)
    return tuple(sorted(kept, key=lambda top: (top[0].terms, top[1])))


def _below(one: tuple[Polynomial, int], other: tuple[Polynomial, int]) -> bool:
    """Whether no coefficient of `one` is more than that of `other`."""
    if one[1] > other[1]:
        return False
    low, high = dict(one[0].terms), dict(other[0].terms)
    return all(c <= high.get(m, 0) for m, c in low.items()) and all(
        c >= 0 for m, c in high.items() if m not in low
    )


def _less(a: Values, b: Values) -> Values:
    return tuple(x - y for x, y in zip(a, b, strict=True))
