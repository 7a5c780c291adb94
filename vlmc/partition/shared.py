"""An embedding that several stages read: each has a copy, and their gradients are summed up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from vlmc.analysis.report import Block
from vlmc.hardware.device import BYTES
from vlmc.partition.costs import OVERLAP, Rooflines
from vlmc.partition.part import Part
from vlmc.partition.setting import Setting
from vlmc.partition.shards import Shapes, first_share, padded, shapes
from vlmc.partition.states import MASTER

EMBEDDING = "language.begin"
"""The block that has the language model's embedding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedEmbedding:
    """An embedding, and the places in the chain of the blocks that read it."""

    owner: Block
    shapes: Shapes
    places: tuple[int, ...]
    bytes: float
    """Of a rank's gradient of it."""
    seconds: float
    """Until the copies have the sum of their gradients, were each on a device of its own."""
    replicas: float
    """Seconds in which replicas exchange weights and gradients of a copy, and wait."""

    def apart(self, ends: Sequence[int]) -> bool:
        """Whether stages that end at `ends` have copies."""
        return len(self._stages(ends)) > 1

    def groups(self, ends: Sequence[int], pipeline: int) -> set[int]:
        """Pipeline groups that have copies: those of one group are summed up by itself."""
        return {stage % pipeline for stage in self._stages(ends)}

    def together(self, cuts: Sequence[int]) -> tuple[int, ...]:
        """Those of the places of cuts that leave it to one stage."""
        first, last = self.places[0], self.places[-1]
        return tuple(cut for cut in cuts if not first < cut <= last)

    def read(self, first: int, end: int) -> bool:
        """Whether a stretch of the chain reads it."""
        return any(first <= place < end for place in self.places)

    def _stages(self, ends: Sequence[int]) -> set[int]:
        return {bisect_right(ends, place) for place in self.places}


def shared_embedding(
    lines: Rooflines, setting: Setting, parts: Sequence[Part]
) -> SharedEmbedding | None:
    """None where copies exchange nothing."""
    report = lines.report
    owner = next((block for block in report.blocks if block.name == EMBEDDING), None)
    readers = [n for n, block in enumerate(report.blocks) if block.embedding]
    if setting.pipeline == 1 or owner is None or not readers:
        return None
    if not owner.stepped and not (setting.zero == 3 and setting.data > 1):
        return None
    reader = report.blocks[readers[0]]
    found = shapes(reader.embedding, reader.embedding_rows)
    places = tuple(
        place
        for place, block in enumerate(report.order)
        if block in readers or report.blocks[block] is owner
    )
    shards = setting.data if setting.zero else 1
    sizes = [owner.stepped * first_share((one,), shards) * MASTER for one in found]
    ranks = min(setting.pipeline, len(places))
    return SharedEmbedding(
        owner=owner,
        shapes=found,
        places=places,
        bytes=sum(sizes),
        seconds=sum(lines.all_reduce(size, ranks, lines.cluster.count) for size in sizes),
        replicas=_exchange(lines, setting, owner, padded(found, shards), parts[readers[0]]),
    )


def _exchange(
    lines: Rooflines, setting: Setting, owner: Block, numbers: int, reader: Part
) -> float:
    """Of a step: what the block that reads the copy does not hide."""
    data, zero, times = setting.data, setting.zero, setting.micro_batches
    span = data * setting.tensor
    gather = lines.gather(numbers * BYTES[lines.request.precision], data, span)
    scatter = lines.gather(owner.stepped * numbers * MASTER, data, span)
    if zero == 0:
        return 2 * scatter
    ahead = max(0.0, gather - OVERLAP * reader.forward)
    if zero == 1:
        return ahead + scatter
    if zero == 2:
        return ahead + times * max(0.0, scatter - OVERLAP * reader.backward)
    return times * (ahead + max(0.0, gather + scatter - OVERLAP * reader.backward))
