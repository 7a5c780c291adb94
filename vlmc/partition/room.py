"""What a device of a pipeline group holds, and whether it has room for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import mul

from vlmc.partition.chain import Chain
from vlmc.partition.plan import Memory
from vlmc.partition.schedule import Moments, moments, most_put_off
from vlmc.partition.setting import Setting
from vlmc.runtime.parallel.plan_rules import puts_off

RESERVE = 0.04
"""Share of what is held that is lost between blocks of the allocator. Assumed."""
CONTEXT = 0.75e9
"""Bytes that the driver, its libraries and its communicators take. Assumed; at most a hundredth of
the device's memory."""


def memory_of(
    chain: Chain, group: int, stretches: Sequence[tuple[int, int]], message: float = 0.0
) -> Memory:
    """Of one device of a pipeline group that holds these stretches of the chain; `message`: the
    largest over any of the plan's cuts."""
    states = [_states(chain, group, first, end) for first, end in stretches]
    weights, gradients, optimiser, cache = map(sum, zip(*states, strict=True))
    moving, over, _ = fullest(chain, group, stretches)
    # Below 0, not all gradients are there at the fullest moment.
    gradients += min(0.0, moving)
    moving = max(0.0, moving)
    most = max(max(chain.buffers[first:end]) for first, end in stretches)
    buffers = min(max(0.0, over), most)
    stages = range(group, group + len(stretches) * chain.setting.pipeline, chain.setting.pipeline)
    messages = sum(
        _messages(chain, stage, end, message)
        for stage, (_, end) in zip(stages, stretches, strict=True)
    )
    kept, seen, sent = _seen(chain, group, stretches)
    kept = min(kept, moving - buffers)
    kinds = {
        "weights": weights,
        "gradients": gradients,
        "optimiser": optimiser,
        "cache": cache,
        "activations": moving - buffers - kept + chain.inputs,
        "vision": kept + seen + sent,
        "buffers": buffers + messages - sent,
    }
    reserve = RESERVE * sum(kinds.values()) + context(chain)
    return Memory(**{kind: int(size) for kind, size in kinds.items()}, reserve=int(reserve))


def _states(chain: Chain, group: int, first: int, end: int) -> tuple[float, float, float, float]:
    """Bytes of weights, gradients, the optimiser's state and caches of a stretch."""
    weights = chain.weights[end] - chain.weights[first]
    gradients = chain.gradients[end] - chain.gradients[first]
    optimiser = chain.optimiser[end] - chain.optimiser[first]
    if group:  # the first stage gives no gradient to another, and puts none off
        gradients += chain.waiting[end] - chain.waiting[first]
    if chain.embeds_apart(first, end):
        weights += chain.copy[0]
        gradients += chain.copy[1]
        optimiser += chain.copy[2]
    return weights, gradients, optimiser, chain.cache[end] - chain.cache[first]


def fullest(
    chain: Chain, group: int, stretches: Sequence[tuple[int, int]]
) -> tuple[float, float, tuple[float, ...]]:
    """Activations of a group at its fullest moment, the bytes of them over what is saved, and
    the micro-batches that it holds of each of its stages at the fullest moment of its work."""
    setting, held = chain.setting, chain.held[group]
    over = [_over(chain, group, first, end) for first, end in stretches]
    saved = [chain.saved[end] - chain.saved[first] for first, end in stretches]
    if len(stretches) == 1:
        return held * saved[0] + over[0], over[0], (held,)
    ending = sum(chain.peaks.ending(first, end) for first, end in stretches)
    at_work, above, counts = max(
        (sum(map(mul, counts, saved)) + over[at], over[at], counts)
        for at, counts in moments_of(setting, group)
    )
    return max(at_work, ending), above if at_work > ending else ending, counts


def moments_of(setting: Setting, group: int) -> Moments:
    """Of a group with several stages; see `moments`."""
    times = setting.micro_batches
    return moments(setting.schedule, group, setting.pipeline, times, setting.chunks)


def _seen(
    chain: Chain, group: int, stretches: Sequence[tuple[int, int]]
) -> tuple[float, float, float]:
    """Bytes of visual features: among what is saved, beside it, and of messages."""
    looked = any(chain.looks[end] > chain.looks[first] for first, end in stretches)
    if chain.lines.request.mode == "serve":
        return 0.0, chain.features * looked, 0.0
    made = any(first < chain.encoder <= end for first, end in stretches)
    kept = chain.features * chain.held[group] * (made and chain.looks[-1] > 1)
    cuts = [first for first, _ in stretches if first]
    cuts += [end for _, end in stretches if end < chain.length and chain.answered(end)]
    sent = sum(chain.encoder < cut and chain.looks[-1] > chain.looks[cut] for cut in cuts)
    return kept, 0.0, chain.features * sent * chain.setting.micro_batches


def _messages(chain: Chain, stage: int, end: int, message: float) -> float:
    """Bytes that a stage receives messages in. In training PyTorch has room for what each
    micro-batch of a step brings, activations and gradients; else for one each way."""
    setting = chain.setting
    if chain.lines.request.mode == "serve":
        return 2 * message
    back = stage < setting.stages - 1 and chain.answered(end)
    return message * setting.micro_batches * ((stage > 0) + back)


def _over(chain: Chain, group: int, first: int, end: int) -> float:
    """Bytes at the fullest moment over the model's states and all that is saved."""
    setting, held = chain.setting, chain.held[group]
    if setting.chunks > 1:
        return chain.peaks.at_work(first, end)
    over = chain.peaks.over(held, first, end, steady=held < setting.micro_batches)
    if not puts_off(setting.schedule, setting.pipeline):
        return over
    # All is kept until the weights' turn: then what their gradients are made of is all there.
    late = chain.put_off[end] - chain.put_off[first]
    waiting = most_put_off(group, setting.micro_batches)
    again = max(chain.again_peaks[first:end])
    return max(over, late + again) + (waiting - 1) * late if waiting else over


def has_room(chain: Chain, stage: int, first: int, end: int, message: float) -> bool:
    """Whether a stage may hold a stretch, were there no other stages on its device."""
    return needs(chain, [stage], [(first, end)], message) <= chain.room


def needs(
    chain: Chain, stages: Sequence[int], stretches: Sequence[tuple[int, int]], message: float
) -> float:
    """Bytes that a device has to have, as `memory_of`, for stages of one group: for all of them, or
    for some as if there were no others."""
    setting, group = chain.setting, stages[0] % chain.setting.pipeline
    total = chain.inputs
    for stage, (first, end) in zip(stages, stretches, strict=True):
        total += _lasting(chain, stage, first, end, message)
    if chain.lines.request.mode == "serve" and any(
        chain.looks[end] > chain.looks[first] for first, end in stretches
    ):
        total += chain.features
    if setting.chunks == 1:
        ((first, end),) = stretches
        total += chain.held[group] * (chain.saved[end] - chain.saved[first])
        total += _over(chain, group, first, end)
    else:
        places = [stage // setting.pipeline for stage in stages]
        total += _several(chain, group, places, stretches)
    return with_reserve(chain, total)


def needs_of_all(chain: Chain, stage: int, first: int, end: int, message: float) -> float:
    """Those with such a stretch in the place of each of a group's stages."""
    setting = chain.setting
    total = setting.chunks * _lasting(chain, stage, first, end, message)
    at_work = _most_in_all(moments_of(setting, stage % setting.pipeline))
    at_work *= chain.saved[end] - chain.saved[first]
    at_work += chain.peaks.at_work(first, end)
    total += max(at_work, setting.chunks * chain.peaks.ending(first, end))
    return with_reserve(chain, total + chain.inputs)


def _lasting(chain: Chain, stage: int, first: int, end: int, message: float) -> float:
    """Bytes of a stage from a step's start to its end: the model's states and messages."""
    states = _states(chain, stage % chain.setting.pipeline, first, end)
    return sum(states) + _messages(chain, stage, end, message)


def _several(
    chain: Chain, group: int, places: Sequence[int], stretches: Sequence[tuple[int, int]]
) -> float:
    """Activations at the fullest moment of these of the stages that a group has."""
    saved = [chain.saved[end] - chain.saved[first] for first, end in stretches]
    over = [chain.peaks.at_work(first, end) for first, end in stretches]
    if len(places) == 1:
        at_work, idle = _most_of(moments_of(chain.setting, group))[places[0]]
        return max(at_work * saved[0] + over[0], idle * saved[0])
    found = moments_of(chain.setting, group)
    if len(places) < chain.setting.chunks:
        lasting = dict(zip(places, over, strict=True))
        return max(
            sum(counts[place] * size for place, size in zip(places, saved, strict=True))
            + lasting.get(at, 0.0)
            for at, counts in found
        )
    at_work = max(sum(map(mul, counts, saved)) + over[at] for at, counts in found)
    return max(at_work, sum(chain.peaks.ending(first, end) for first, end in stretches))


@cache
def _most_of(found: Moments) -> tuple[tuple[int, int], ...]:
    """By stage of a group, the most micro-batches that it holds of it: while that is at work, and
    while another is."""
    return tuple(
        (
            max(counts[place] for at, counts in found if at == place),
            max(counts[place] for at, counts in found if at != place),
        )
        for place in range(len(found[0][1]))
    )


def enough_in_all(chain: Chain, heaviest: float) -> bool:
    """Whether all devices together have room for the chain if no stage takes more seconds of a step
    than `heaviest`: where each group holds the most micro-batches, and stages of which it holds few
    save as much as they may."""
    setting = chain.setting
    largest, first = 0.0, 0
    for end in range(1, chain.length + 1):
        while chain.work[end] - chain.work[first] > heaviest:
            first += 1
        largest = max(largest, chain.saved[end] - chain.saved[first])
    left, total = chain.saved[-1], chain.inputs * setting.pipeline
    for count in _at_most(tuple(moments_of(setting, one) for one in range(setting.pipeline))):
        taken = min(left, largest)
        left, total = left - taken, total + count * taken
    for row in (chain.weights, chain.gradients, chain.optimiser):
        total += row[-1]
    return with_reserve(chain, total / setting.pipeline) <= chain.room


@cache
def _at_most(groups: tuple[Moments, ...]) -> list[int]:
    """Rising, the micro-batches that groups hold of each stage when they hold most in all."""
    return sorted(count for found in groups for count in max(found, key=_held)[1])


@cache
def _most_in_all(found: Moments) -> int:
    """Micro-batches of all stages of a group together, at the most."""
    return max(map(_held, found))


def _held(moment: tuple[int, tuple[int, ...]]) -> int:
    return sum(moment[1])


def with_reserve(chain: Chain, size: float) -> float:
    """Bytes that a device needs to hold so many."""
    return size * (1 + RESERVE) + context(chain)


def context(chain: Chain) -> float:
    """Bytes that the driver and its libraries take of a device."""
    return min(CONTEXT, chain.room / 100)
