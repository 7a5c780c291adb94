"""An embedding that several stages read: each has a copy, and their gradients are summed up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from vlmc.partition.costs import Rooflines
from vlmc.partition.setting import Setting
from vlmc.partition.states import MASTER

EMBEDDING = "language.begin"
"""The block that has the language model's embedding."""


@dataclass(frozen=True, slots=True)
class SharedEmbedding:
    """A trained embedding, and the places in the chain of the blocks that read it."""

    places: tuple[int, ...]
    bytes: float
    """Of a rank's gradient of it."""
    seconds: float
    """Until the copies have the sum of their gradients, were each on a device of its own."""

    def apart(self, ends: Sequence[int]) -> bool:
        """Whether stages that end at `ends` have copies."""
        return len(self._stages(ends)) > 1

    def groups(self, ends: Sequence[int], pipeline: int) -> int:
        """Pipeline groups that have copies: those of one group are summed up by itself."""
        return len({stage % pipeline for stage in self._stages(ends)})

    def together(self, cuts: Sequence[int]) -> tuple[int, ...]:
        """Those of the places of cuts that leave it to one stage."""
        first, last = self.places[0], self.places[-1]
        return tuple(cut for cut in cuts if not first < cut <= last)

    def _stages(self, ends: Sequence[int]) -> set[int]:
        return {bisect_right(ends, place) for place in self.places}


def shared_embedding(lines: Rooflines, setting: Setting) -> SharedEmbedding | None:
    """None where no gradient of it goes from stage to stage."""
    report = lines.report
    owner = next((block for block in report.blocks if block.name == EMBEDDING), None)
    tensors = next((block.embedding for block in report.blocks if block.embedding), ())
    if setting.pipeline == 1 or owner is None or not (tensors and owner.stepped):
        return None
    reads = [one.name == EMBEDDING or bool(one.embedding) for one in report.blocks]
    places = tuple(place for place, block in enumerate(report.order) if reads[block])
    sizes = [size * MASTER / (setting.data if setting.zero else 1) for size in tensors]
    ranks = min(setting.pipeline, len(places))
    seconds = sum(lines.all_reduce(size, ranks, lines.cluster.count) for size in sizes)
    return SharedEmbedding(places, sum(sizes), seconds)
