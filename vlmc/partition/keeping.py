"""What each kind of block keeps for the backward pass, as the search goes through it.

With three words for each of k kinds there are 3^k ways. A kind that keeps less takes no less time,
wherever the chain is cut. So the search begins with what takes the least time and lets kinds keep
less one by one, each way being reached once: what rules a way out for its time, rules out all that
follow it, and so does too little memory where all that follow it would have too little.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlmc.partition.costs import Rooflines
from vlmc.partition.part import Part, parts
from vlmc.partition.plan import Checkpointing
from vlmc.partition.setting import Setting
from vlmc.partition.space import KEEPS, keeping, kinds


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    blocks: tuple[int, ...]
    words: tuple[Checkpointing, ...]
    """Those that differ in what they keep; each takes no less time than the one before."""
    costs: tuple[tuple[Part, ...], ...]
    """By word, of each of its blocks."""
    least: tuple[tuple[Part, ...], ...]
    """As `costs`, with the least that this word or a later one saves."""

    @property
    def relief(self) -> float:
        """Bytes that the last word saves less than the first."""
        ends = zip(self.costs[0], self.costs[-1], strict=True)
        return sum(one.saved - two.saved for one, two in ends)


class Keeping:
    """All ways to keep under one base and ZeRO stage. A way is the place of each kind's word."""

    def __init__(self, lines: Rooflines, base: Setting) -> None:
        self._order = kinds(lines)
        blocks = lines.report.blocks
        costs: dict[Checkpointing, tuple[Part, ...]] = {}
        for word in KEEPS:
            if any(word in each for each in self._order.values()):
                alike: dict[str, Checkpointing] = dict.fromkeys(self._order, word)
                costs[word] = parts(lines, replace(base, keeps=keeping(alike)))
        self._parts = next(iter(costs.values()), None) or parts(lines, base)
        found = [
            _kind(
                name,
                tuple(at for at, one in enumerate(blocks) if one.name == name),
                {word: costs[word] for word in each},
            )
            for name, each in self._order.items()
        ]
        counts = {name: sum(b.count for b in blocks if b.name == name) for name in self._order}
        # First those whose word decides most about memory: what is left cannot make up for it.
        self._kinds = sorted(found, key=lambda one: one.relief * counts[one.name], reverse=True)

    @property
    def fastest(self) -> tuple[int, ...]:
        """The way that takes the least time."""
        return (0,) * len(self._kinds)

    def named(self, way: tuple[int, ...]) -> tuple[tuple[str, Checkpointing], ...]:
        """A way as a setting carries it, in the report's order."""
        words: dict[str, Checkpointing] = {
            one.name: one.words[place] for one, place in zip(self._kinds, way, strict=True)
        }
        return keeping({name: words[name] for name in self._order})

    def parts(self, way: tuple[int, ...]) -> tuple[Part, ...]:
        """By distinct block."""
        return self._filled([one.costs[at] for one, at in zip(self._kinds, way, strict=True)])

    def least(self, way: tuple[int, ...], free: int) -> tuple[Part, ...]:
        """As `parts`, where each kind from `free` on saves the least that it can from here."""
        return self._filled(
            [
                one.least[place] if number >= free else one.costs[place]
                for number, (one, place) in enumerate(zip(self._kinds, way, strict=True))
            ]
        )

    def following(self, way: tuple[int, ...], free: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """The ways in which one kind from `free` on keeps less, each with the first kind that may
        then keep less."""
        for number in range(free, len(way)):
            if way[number] + 1 < len(self._kinds[number].words):
                yield (*way[:number], way[number] + 1, *way[number + 1 :]), number

    def _filled(self, costs: list[tuple[Part, ...]]) -> tuple[Part, ...]:
        found = list(self._parts)
        for kind, each in zip(self._kinds, costs, strict=True):
            for block, part in zip(kind.blocks, each, strict=True):
                found[block] = part
        return tuple(found)


def _kind(
    name: str, blocks: tuple[int, ...], costs: dict[Checkpointing, tuple[Part, ...]]
) -> _Kind:
    """A kind without words that save what a faster one saves."""
    words: dict[Checkpointing, tuple[Part, ...]] = {}
    for word, of in costs.items():
        own = tuple(of[block] for block in blocks)
        saved = [part.saved for part in own]
        if not any(saved == [part.saved for part in other] for other in words.values()):
            words[word] = own
    listed = list(words.values())
    return _Kind(
        name=name,
        blocks=blocks,
        words=tuple(words),
        costs=tuple(listed),
        least=tuple(
            tuple(
                one[at]._replace(saved=min(later[at].saved for later in listed[place:]))
                for at in range(len(blocks))
            )
            for place, one in enumerate(listed)
        ),
    )
