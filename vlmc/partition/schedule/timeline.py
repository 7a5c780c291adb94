"""A simulated step: when each action starts and ends, who waits, what is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vlmc.partition.schedule.orders import Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Seconds from the start of the step, by rank, in the rank's order."""

    actions: tuple[tuple[Action, ...], ...]
    starts: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]
    first_backward: int = 0
    """The first stage that has a backward pass (all before it are frozen)."""

    @property
    def ranks(self) -> int:
        """Places along the pipeline."""
        return len(self.actions)

    @property
    def seconds(self) -> float:
        """From the first action's start to the last one's end."""
        return max((ends[-1] for ends in self.ends if ends), default=0.0)

    def order(self, rank: int) -> list[Action]:
        """What a rank does, in its order: what torch.distributed.pipelining runs there."""
        return list(self.actions[rank])

    def rows(self, rank: int) -> Iterator[tuple[Action, float, float]]:
        """A rank's actions, each with start and end."""
        return zip(self.actions[rank], self.starts[rank], self.ends[rank], strict=True)

    def busy(self, rank: int) -> float:
        """Seconds of work."""
        return sum(end - start for _, start, end in self.rows(rank))

    def bubble(self, rank: int) -> float:
        """Share of the whole time in which a rank waits, from 0 to 1."""
        return 1 - self.busy(rank) / self.seconds if self.seconds else 0.0

    @property
    def bubble_share(self) -> float:
        """The same over all ranks."""
        return sum(self.bubble(rank) for rank in range(self.ranks)) / self.ranks

    def in_flight(self, rank: int) -> list[tuple[float, int]]:
        """(seconds, micro-batches held from then on) whenever the number changes. A micro-batch is
        held once for each stage (chunk) of the rank, from the start of its forward pass to the end
        of its backward pass, weight gradients included."""
        held, number = list[tuple[float, int]](), 0
        for change, when, _ in self._changes(rank):
            number += change
            held.append((when, number))
        return held

    def peak(self, rank: int, size: Callable[[int], float] | None = None) -> float:
        """The most that a rank holds at one time: micro-batches, as `in_flight` counts them, or
        what they take where `size` says what one micro-batch takes on a stage."""
        held = most = 0.0
        for change, _, stage in self._changes(rank):
            held += change * (size(stage) if size else 1)
            most = max(most, held)
        return most

    def _changes(self, rank: int) -> Iterator[tuple[int, float, int]]:
        """(+1 or -1, when, stage). What a stage without a backward pass reads is not kept."""
        for action, start, end in self.rows(rank):
            if action.stage < self.first_backward:
                continue
            if action.op == "F":
                yield 1, start, action.stage
            elif action.op in ("B", "W"):
                yield -1, end, action.stage
