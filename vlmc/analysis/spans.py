"""A recorded run cut into visits of blocks, with what each does to the memory's level."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmc.analysis.fit import Fit
from vlmc.analysis.polynomial import ZERO, Polynomial
from vlmc.analysis.report import Largest, Level
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
    tops: list[Values] = field(default_factory=list[Values])
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
                found[-1].tops.append(level)
    if found:
        found[-1].end = level
    return found


def level(stretch: Stretch, fit: Fit) -> Level:
    """A stretch's effect, as polynomials."""
    tops = {_less(top, stretch.start) for top in stretch.tops}
    return Level(fit(_less(stretch.end, stretch.start)), largest(fit(top) for top in tops))


def largest(among: object) -> Largest:
    """Of polynomials, those that are not below another at all sizes."""
    kept: list[Polynomial] = []
    for one in set(among):  # type: ignore[call-overload]
        if any(_below(one, other) for other in kept):
            continue
        kept = [other for other in kept if not _below(other, one)]
        kept.append(one)
    return Largest(tuple(sorted(kept, key=lambda one: one.terms)))


def _below(one: Polynomial, other: Polynomial) -> bool:
    return all(coefficient >= 0 for _, coefficient in other - one)


def _less(a: Values, b: Values) -> Values:
    return tuple(x - y for x, y in zip(a, b, strict=True))
