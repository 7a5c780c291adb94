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
from vlmc.partition.several import Effort, Groups, Room, least_together


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
    effort = effort or Effort()
    levels = chain.levels if chain.setting.stages > 1 else ((0.0, 0.0, (chain.length,)),)
    for message, token_message, places, once in _families(chain, levels):
        cutter = _cutter(chain, places, unlimited)
        serve = chain.lines.request.mode == "serve"
        cuts = (
            _answers(chain, cutter, message, token_message, under)
            if serve
            else _steps(chain, cutter, message, under - once, None if unlimited else effort)
        )
        for ends in cuts:
            found = pace(chain, ends)
            if found.seconds < under:
                best, under = Leaf(chain, ends, found), found.seconds
    return best


def _families(
    chain: Chain, levels: Levels
) -> Iterator[tuple[float, float, tuple[int, ...], float]]:
    """Levels with what a step takes once: gradients of an embedding, unless no cut gives copies of
    it to several stages."""
    for message, token_message, places in levels:
        if chain.shared is None:
            yield message, token_message, places, 0.0
        else:
            yield message, token_message, places, chain.shared.seconds
            yield message, token_message, chain.shared.together(places), 0.0


def fits(leaf: Leaf) -> bool:
    """Whether there is memory for its cuts, by the rule that cuts are searched with."""
    room = _room(leaf.chain, leaf.ends)
    return all(room(leaf.ends[: stage + 1]) for stage in range(len(leaf.ends)))


def fitting(chain: Chain, places: tuple[int, ...]) -> tuple[int, ...] | None:
    """The ends of stages that there is memory for, whatever time they take, by cuts at some places;
    None where none were found."""
    cutter = _cutter(chain, places, unlimited=False)
    if chain.setting.chunks == 1:
        return cutter.fitting()
    nothing = [0.0] * (chain.length + 1)
    return least_together(cutter, nothing, _groups(chain, places), inf, Effort()).ends


def _groups(chain: Chain, places: Sequence[int]) -> Groups:
    """What groups have room for among cuts at some places."""
    message = chain.largest(places[:-1])

    def alike(share: float) -> Fits:
        def fits(stage: int, first: int, end: int) -> bool:
            return needs_of_all(chain, stage, first, end, message) <= share * chain.room

        return fits

    return Groups(room=_room(chain, places), alike=alike, enough=partial(enough_in_all, chain))


def _room(chain: Chain, places: Sequence[int]) -> Room:
    message, groups = chain.largest(places[:-1]), chain.setting.pipeline

    def room(ends: Sequence[int]) -> bool:
        last = len(ends) - 1
        stages = range(last % groups, last + 1, groups)
        stretches = [(ends[stage - 1] if stage else 0, ends[stage]) for stage in stages]
        return needs(chain, stages, stretches, message) <= chain.room

    return room


def _cutter(chain: Chain, places: tuple[int, ...], unlimited: bool) -> Cutter:
    setting, message = chain.setting, chain.largest(places[:-1])

    def fits(stage: int, first: int, end: int) -> bool:
        return unlimited or has_room(chain, stage, first, end, message)

    return Cutter(
        length=chain.length,
        stages=setting.stages,
        allowed=places,
        fits=fits,
        barrier=chain.encoder if setting.placement == "own_group" else None,
    )


def _steps(
    chain: Chain, cutter: Cutter, message: float, under: float, effort: Effort | None
) -> Iterator[tuple[int, ...]]:
    """Candidates for the fastest step. `effort`: None where memory is no matter."""
    setting = chain.setting
    aside = fill(chain, message) + 2 * message * setting.micro_batches * setting.chunks
    aside += chain.lines.agreement
    most = (under - aside) / setting.chunks
    if setting.chunks > 1 and effort is not None:
        groups = _groups(chain, cutter.allowed)
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
