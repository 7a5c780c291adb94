"""What a device of a pipeline group holds, and whether it has room for it."""

from __future__ import annotations

from collections.abc import Sequence
from operator import mul

from vlmc.partition.chain import Chain
from vlmc.partition.plan import Memory
from vlmc.partition.schedule import moments, most_put_off
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
    times = setting.micro_batches
    ending = sum(chain.peaks.ending(first, end) for first, end in stretches)
    at_work, above, counts = max(
        (sum(map(mul, counts, saved)) + over[at], over[at], counts)
        for at, counts in moments(setting.schedule, group, setting.pipeline, times, setting.chunks)
    )
    return max(at_work, ending), above if at_work > ending else ending, counts


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
    """Whether a stage may hold a stretch: as `memory_of`. With several stages to a device it
    has to have room for as many as large as this one, beside what any block needs while it
    runs, so that stages can be looked at one by one."""
    chunks = chain.setting.chunks
    group = stage % chain.setting.pipeline
    saved = chain.held[group] * (chain.saved[end] - chain.saved[first])
    total = sum(_states(chain, group, first, end)) + saved
    if chain.lines.request.mode == "serve" and chain.looks[end] > chain.looks[first]:
        total += chain.features
    total += _messages(chain, stage, end, message)
    if chunks > 1:
        more = chain.peaks.ending(first, end) - saved
        total = (total + max(0.0, more)) * chunks + chain.peaks.any
    else:
        total += _over(chain, group, first, end)
    return with_reserve(chain, total + chain.inputs) <= chain.room


def with_reserve(chain: Chain, size: float) -> float:
    """Bytes that a device needs to hold so many."""
    return size * (1 + RESERVE) + context(chain)


def context(chain: Chain) -> float:
    """Bytes that the driver and its libraries take of a device."""
    return min(CONTEXT, chain.room / 100)
