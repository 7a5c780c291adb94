"""Which stage works on which micro-batch in which order, as torch.distributed.pipelining runs it.

Rank here is a place along the pipeline. With several chunks stage i belongs to rank i % ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import le
from typing import Literal, NamedTuple

from vlmc.partition.plan import ParallelPlan, Schedule
from vlmc.runtime.parallel.plan_rules import refusal

Op = Literal["F", "B", "I", "W"]
"""F: forward. B: the whole backward pass. I: gradients of activations. W: gradients of weights."""

_WORDS = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}


class Action(NamedTuple):
    """What a rank does at one time."""

    stage: int
    op: Op
    micro_batch: int

    def __str__(self) -> str:
        return f"{_WORDS[self.op]} of micro-batch {self.micro_batch} on stage {self.stage}"


Orders = Sequence[Sequence[Action]]
"""By rank: its actions, one after the other."""
Moments = tuple[tuple[int, tuple[int, ...]], ...]
"""Of a rank: which of its stages is at work, and micro-batches that are held of each."""


def orders_of(plan: ParallelPlan, micro_batches: int) -> list[list[Action]]:
    """What each pipeline group of a plan does with so many, in its order. ValueError as `order`."""
    return order(plan.schedule, plan.mesh.pipeline, micro_batches, plan.chunks)


def order(
    schedule: Schedule, ranks: int, micro_batches: int, chunks: int = 1
) -> list[list[Action]]:
    """By rank, what it does. ValueError with the reason where `refusal` gives one.

    gpipe: Huang et al., 2019. 1f1b: Narayanan et al., 2019. interleaved: Narayanan et al., 2021,
    section 2.2. zero_bubble: ZB-H1 of Qi et al., 2024, section 2.1 (its memory is that of 1f1b),
    which torch names ScheduleInterleavedZeroBubble and extends to several chunks.
    """
    reason = refusal(schedule, ranks, micro_batches, chunks)
    if reason:
        raise ValueError(reason)
    return [_of_rank(schedule, rank, ranks, micro_batches, chunks) for rank in range(ranks)]


def moments(schedule: Schedule, rank: int, ranks: int, micro_batches: int, chunks: int) -> Moments:
    """Which of its stages a rank works on, by its place among them, and the micro-batches that it
    then holds of each, the one at work among them; moments at which another of the same stage holds
    no less of any are left out. ValueError as `order`."""
    reason = refusal(schedule, ranks, micro_batches, chunks)
    if reason:
        raise ValueError(reason)
    if chunks > 1 and micro_batches % ranks == 0:  # in rounds; but for the first and last alike
        micro_batches = min(micro_batches, 4 * ranks)
    return _moments(schedule, rank, ranks, micro_batches, chunks)


@cache
def _moments(schedule: Schedule, rank: int, ranks: int, micro_batches: int, chunks: int) -> Moments:
    held = [0] * chunks
    found: set[tuple[int, tuple[int, ...]]] = set()
    for action in _of_rank(schedule, rank, ranks, micro_batches, chunks):
        at = action.stage // ranks
        held[at] += action.op == "F"
        found.add((at, tuple(held)))
        held[at] -= action.op in ("B", "W")
    return tuple(one for one in sorted(found) if not any(_under(one, other) for other in found))


def _under(one: tuple[int, tuple[int, ...]], other: tuple[int, tuple[int, ...]]) -> bool:
    return one != other and one[0] == other[0] and all(map(le, one[1], other[1]))


def _rounds(ranks: int, micro_batches: int) -> int:
    """Interleaving works through micro-batches in groups, about one micro-batch for each rank."""
    return max(1, micro_batches // ranks)


def _of_rank(
    schedule: Schedule, rank: int, ranks: int, micro_batches: int, chunks: int
) -> list[Action]:
    if schedule == "gpipe":
        return [Action(rank, "F", i) for i in range(micro_batches)] + [
            Action(rank, "B", i) for i in range(micro_batches)
        ]
    group = micro_batches // _rounds(ranks, micro_batches) if chunks > 1 else micro_batches
    places = [
        (chunk, micro_batch)
        for first in range(0, micro_batches, group)
        for chunk in range(chunks)
        for micro_batch in range(first, first + group)
    ]
    forwards = [Action(chunk * ranks + rank, "F", i) for chunk, i in places]
    backwards = [((chunks - 1 - chunk) * ranks + rank, i) for chunk, i in places]
    # An input gradient comes back after two hops for each rank behind (there and back). Interleaved
    # 1F1B starts that many forwards early; the others let ranks start as late as their memory asks.
    hops = (2 if schedule == "interleaved" else 1) * (ranks - 1 - rank)
    early = min((chunks - 1) * group + hops, len(forwards))
    if schedule == "zero_bubble":
        return _alternate(forwards, backwards, early, weights_after=rank)
    return _alternate(forwards, backwards, early, weights_after=None)


def _alternate(
    forwards: list[Action],
    backwards: list[tuple[int, int]],
    early: int,
    weights_after: int | None,
) -> list[Action]:
    """`early` forwards, then forwards and backwards in turn, then the backwards that remain. Weight
    gradients, where they are apart, follow `weights_after` input gradients later."""
    actions = forwards[:early]
    weights = [Action(stage, "W", micro_batch) for stage, micro_batch in backwards]
    for number, (stage, micro_batch) in enumerate(backwards):
        actions += forwards[early + number : early + number + 1]
        actions.append(Action(stage, "B" if weights_after is None else "I", micro_batch))
        if weights_after is not None and number >= weights_after:
            actions.append(weights[number - weights_after])
    if weights_after:
        actions += weights[-weights_after:]
    return actions
