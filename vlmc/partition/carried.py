"""What goes from block to block along a chain, and past blocks to those that still read it."""

from __future__ import annotations

from collections.abc import Sequence

from vlmc.analysis.report import GraphReport
from vlmc.partition.part import Part


def outputs(parts: Sequence[Part], order: Sequence[int]) -> list[float]:
    """What each block hands on; one that does not run leaves what it was given."""
    found: list[float] = []
    for block in order:
        found.append(parts[block].output or (found[-1] if found else 0.0))
    return found


def beside(parts: Sequence[Part], report: GraphReport) -> list[tuple[int, int, float]]:
    """What stacks read beside their input: the place that it is made at (or that `output` stops
    being it at), the last place that reads it, bytes."""
    blocks, order = report.blocks, report.order
    places: dict[str, list[int]] = {}
    for place, block in enumerate(order):
        if parts[block].looks:
            places.setdefault(blocks[block].name, []).append(place)
    return [
        (
            max((p for p in range(own[0]) if "*" not in blocks[order[p]].name), default=own[0]),
            own[-1],
            parts[order[own[0]]].looks,
        )
        for own in places.values()
    ]
