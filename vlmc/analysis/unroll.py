"""From a shallow design's sequence of blocks to the deep one's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

from vlmc.analysis.shrink import Instance, Shrunk
from vlmc.analysis.spans import Where

T = TypeVar("T")
ONCE = Instance(0)


def unrolled(items: Sequence[T], where: Sequence[Where], shrunk: Shrunk) -> list[T]:
    """What happens block by block in the deep design, from what happens in the shallow one.

    `where` says which block each item belongs to. Neighbours of one period are repeated together as
    often as that period stands in the deep design, and within it each block for those that it
    stands for. Forward or backward, the order is kept.
    """
    result: list[T] = []
    pairs = list(zip(items, where, strict=True))
    for _, period in groupby(pairs, key=lambda pair: _period(pair[1], shrunk)):
        run: list[T] = []
        times = 1
        for block, group in groupby(period, key=lambda pair: pair[1]):
            instance = _instance(block, shrunk)
            run.extend([item for item, _ in group] * instance.times)
            times = instance.periods
        result.extend(run * times)
    return result


def _period(block: Where, shrunk: Shrunk) -> tuple[str, int]:
    stack = block[0].removesuffix(".*")
    # Gated blocks and the language model's layers take turns.
    system = "language.layers" if stack == "gated_blocks" else stack
    return system, _instance(block, shrunk).period


def _instance(block: Where, shrunk: Shrunk) -> Instance:
    instances = shrunk.stacks.get(block[0].removesuffix(".*"))
    return ONCE if instances is None else instances[block[1]]
