"""The best cuts under one setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from vlmc.partition.chain import Chain, Levels
from vlmc.partition.cuts import Cutter, Fits
from vlmc.partition.pace import Pace, backward_work, each_token, fill, first_token, pace
from vlmc.partition.room import enough_in_all, has_room, needs, needs_of_all
from vlmc.partition.several import Effort, Groups, Room, Together, least_together
from vlmc.partition.shared import SharedEmbedding


@dataclass(frozen=True, slots=True)
class Leaf:
    """A setting with its best cuts."""

    chain: Chain
    ends: tuple[int, ...]
    pace: Pace


def best_cuts(
    chain: Chain, under: float, *, unlimited: bool = False, effort: Effort | None = None
) -> Leaf | None:
    """The fastest cuts that fit, if they take less than `under` seconds. `unlimited`: as if there
    were memory for any. `effort`: of the search that they are part of."""
    best: Leaf | None = None
    effort, chunks = effort or Effort(), chain.setting.chunks
    if chunks > 1 and not unlimited and not enough_in_all(chain, under / chunks):
        return None
    levels = chain.levels if chain.setting.stages > 1 else ((0.0, 0.0, (chain.length,)),)
    for message, token_message, places, once, group in _families(chain, levels):
        cutter = _cutter(chain, places, unlimited, group)
        serve = chain.lines.request.mode == "serve"
        cuts = (
            _answers(chain, cutter, message, token_message, under)
            if serve
            else _steps(chain, cutter, message, under - once, None if unlimited else effort, group)
        )
        for ends in cuts:
            found = pace(chain, ends)
            if found.seconds < under:
                best, under = Leaf(chain, ends, found), found.seconds
    return best


def _families(
    chain: Chain, levels: Levels
) -> Iterator[tuple[float, float, tuple[int, ...], float, int | None]]:
    """Levels with what a step takes once for copies of an embedding: where several groups have
    them, where one group has them all (which), where no cut makes any."""
    shared, setting = chain.shared, chain.setting
    for message, token_message, places in levels:
        if shared is None:
            yield message, token_message, places, 0.0, None
            continue
        yield message, token_message, places, shared.seconds + shared.replicas, None
        yield message, token_message, shared.together(places), 0.0, None
        if shared.seconds and setting.chunks > 1:
            for group in _alone(chain, shared):
                yield message, token_message, places, shared.replicas, group


def _alone(chain: Chain, shared: SharedEmbedding) -> Sequence[int]:
    """Groups that may have all copies: the ends of the chain are of the first and of the last."""
    last = chain.setting.pipeline - 1
    least = last if shared.places[-1] == chain.length - 1 else 0
    most = last if shared.places[0] else 0
    return range(least, most + 1)


def fits(leaf: Leaf) -> bool:
    """Whether there is memory for its cuts, by the rule that cuts are searched with."""
    room = _room(leaf.chain, leaf.ends)
    return all(room(leaf.ends[: stage + 1]) for stage in range(len(leaf.ends)))


def fitting(chain: Chain, places: tuple[int, ...]) -> Together:
    """The ends of stages that there is memory for, whatever time they take, by cuts at some
    places."""
    cutter = _cutter(chain, places, unlimited=False)
    if chain.setting.chunks == 1:
        return Together(cutter.fitting())
    nothing = [0.0] * (chain.length + 1)
    return least_together(cutter, nothing, _groups(chain, places), inf, Effort())


def _groups(chain: Chain, places: Sequence[int], group: int | None = None) -> Groups:
    """What groups have room for among cuts at some places. `group`: as in `_reads`."""
    message, reads, room = chain.largest(places[:-1]), _reads(chain, group), _room(chain, places)

    def alike(share: float) -> Fits:
        def fits(stage: int, first: int, end: int) -> bool:
            needed = needs_of_all(chain, stage, first, end, message)
            return reads(stage, first, end) and needed <= share * chain.room

        return fits

    def within(ends: Sequence[int]) -> bool:
        return reads(len(ends) - 1, (0, *ends)[-2], ends[-1]) and room(ends)

    return Groups(room=within, alike=alike, enough=partial(enough_in_all, chain))


def _reads(chain: Chain, group: int | None) -> Fits:
    """Whether a stage may hold a stretch where no pipeline group but one, if any, reads the
    embedding."""
    shared, groups = chain.shared, chain.setting.pipeline

    def fits(stage: int, first: int, end: int) -> bool:
        if shared is None or group in (None, stage % groups):
            return True
        return not shared.read(first, end)

    return fits


def _room(chain: Chain, places: Sequence[int]) -> Room:
    message, groups = chain.largest(places[:-1]), chain.setting.pipeline

    def room(ends: Sequence[int]) -> bool:
        last = len(ends) - 1
        stages = range(last % groups, last + 1, groups)
        stretches = [(ends[stage - 1] if stage else 0, ends[stage]) for stage in stages]
        return needs(chain, stages, stretches, message) <= chain.room

    return room


def _cutter(
    chain: Chain, places: tuple[int, ...], unlimited: bool, group: int | None = None
) -> Cutter:
    """`group`: as in `_reads`."""
    setting, message, reads = chain.setting, chain.largest(places[:-1]), _reads(chain, group)

    def fits(stage: int, first: int, end: int) -> bool:
        if not reads(stage, first, end):
            return False
        return unlimited or has_room(chain, stage, first, end, message)

    return Cutter(
        length=chain.length,
        stages=setting.stages,
        allowed=places,
        fits=fits,
        barrier=chain.encoder if setting.placement == "own_group" else None,
    )


def _steps(
    chain: Chain,
    cutter: Cutter,
    message: float,
    under: float,
    effort: Effort | None,
    group: int | None,
) -> Iterator[tuple[int, ...]]:
    """Candidates for the fastest step. `effort`: None where memory is no matter; `group`: as in
    `_reads`."""
    setting = chain.setting
    aside = fill(chain, message) + 2 * message * setting.micro_batches * setting.chunks
    aside += chain.lines.agreement
    most = (under - aside) / setting.chunks
    if setting.chunks > 1 and effort is not None:
        groups = _groups(chain, cutter.allowed, group)
        together = least_together(cutter, chain.work, groups, most, effort)
        effort.missed = min(effort.missed, aside + setting.chunks * together.missed)
        if together.ends:
            yield together.ends
        return
    if setting.schedule != "gpipe":
        found = cutter.least(chain.work, under=most)
        if found:
            yield found[1]
        return
    forward = [setting.micro_batches * one for one in chain.forward]
    backward = backward_work(chain)
    lightest = cutter.least(backward, under=most)
    best = most
    for one, two, ends in cutter.front(forward, backward, most, most):
        if lightest is None or one + lightest[0] >= best:
            return
        if one + two < best:
            best = one + two
            yield ends


def _answers(
    chain: Chain, cutter: Cutter, message: float, token_message: float, under: float
) -> Iterator[tuple[int, ...]]:
    """Candidates for the fastest answer within the limits of latency."""
    request = chain.lines.request
    first_limit = request.first_token_limit or inf
    token_limit = request.token_limit if request.token_limit and request.generate else inf

    def first(heaviest: float) -> float:
        return first_token(chain, heaviest, message)

    def each(heaviest: float) -> float:
        return each_token(chain, heaviest, token_message)

    slow, late = _most(first, first_limit), _most(each, token_limit)
    lightest = cutter.least(chain.token, under=late)
    if lightest is None:
        return
    least = request.steps * each(lightest[0])
    for one, two, ends in cutter.front(chain.forward, chain.token, slow, late):
        start = first(one)
        if start + least >= under:
            return
        under = min(under, start + request.steps * each(two))
        yield ends


def _most(of: Callable[[float], float], limit: float) -> float:
    """The greatest argument at which a rising function is within a limit; below 0, none is."""
    if limit == inf:
        return inf
    if of(0.0) > limit:
        return -1.0
    low, high = 0.0, 1.0
    while of(high) <= limit and high < 1e9:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        if of(middle) <= limit:
            low = middle
        else:
            high = middle
    return low
