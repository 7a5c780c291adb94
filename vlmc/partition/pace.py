"""How long a pipeline takes with given cuts: closed forms.

With p groups, m micro-batches and v stages to a group, X the seconds of a micro-batch in a group:
m X at work and, until the first work arrives and after the last has gone on, (p - 1) X / v (1F1B:
Narayanan et al., 2019; interleaved: 2021, section 2.2), or (p - 1) (X - 2 W) where the gradients of
weights W fill the gaps (ZB-H1: Qi et al., 2024, section 2.3). They are exact where all stages take
the same time. Where they do not, the heaviest stage sets the pace and the mean fills the pipeline;
what `schedule.simulate` finds for gpipe and 1f1b is never more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlmc.partition.chain import Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of a step, or of an answer to a whole batch."""

    seconds: float
    busy: float
    """Of the busiest group, messages between groups included."""
    messages: float
    """Of `busy`."""
    first_token: float | None = None
    token: float | None = None
    token_busy: float = 0.0
    """Of `token`, the turns of all micro-batches at the busiest group."""
    token_messages: float = 0.0
    """Of `token_busy`."""


def pace(chain: Chain, ends: Sequence[int]) -> Pace:
    """What a setting takes with its stages ending at `ends`."""
    return _answer(chain, ends) if chain.lines.request.mode == "serve" else _step(chain, ends)


def fill(chain: Chain, message: float) -> float:
    """Seconds in which a pipeline fills and empties."""
    setting = chain.setting
    once = chain.forward[-1] + chain.backward[-1]
    if setting.schedule == "zero_bubble":
        once = max(0.0, once - 2 * chain.late[-1])
    once += 2 * message * setting.stages
    return once * (1 - 1 / setting.pipeline) / setting.chunks


def _step(chain: Chain, ends: Sequence[int]) -> Pace:
    setting = chain.setting
    message = max((chain.send(end) for end in ends[:-1]), default=0.0)
    messages = 2 * message * setting.micro_batches * setting.chunks
    stages = list(pairwise((0, *ends)))
    if setting.schedule == "gpipe":
        busy = heaviest(chain.forward, stages) * setting.micro_batches
        busy += heaviest(backward_work(chain), stages)
    else:
        busy = heaviest(chain.work, stages) * setting.chunks
    busy += messages + chain.lines.agreement
    seconds = fill(chain, message) + busy
    if chain.shared is not None and chain.shared.apart(ends):
        groups, own = chain.shared.groups(ends, setting.pipeline), chain.busiest(ends)
        summed = chain.shared.seconds * (len(groups) > 1)
        seconds += summed + chain.shared.replicas
        busy += summed * (own in groups)
        busy += chain.shared.replicas * any(
            chain.embeds_apart(*stretch) for stretch in chain.groups(ends)[own]
        )
    return Pace(seconds=seconds, busy=busy, messages=messages)


def backward_work(chain: Chain) -> list[float]:
    """Sums over the chain of a step's backward passes, and of what follows them once."""
    times = chain.setting.micro_batches
    return [times * one + two for one, two in zip(chain.backward, chain.tail, strict=True)]


def _answer(chain: Chain, ends: Sequence[int]) -> Pace:
    setting, request = chain.setting, chain.lines.request
    stages = list(pairwise((0, *ends)))
    message = max((chain.send(end) for end in ends[:-1]), default=0.0)
    token_message = max((chain.send_token(end) for end in ends[:-1]), default=0.0)
    first = first_token(chain, heaviest(chain.forward, stages), message)
    slowest = heaviest(chain.token, stages)
    token = each_token(chain, slowest, token_message)
    messages = message * setting.micro_batches
    return Pace(
        seconds=first + request.steps * token,
        busy=heaviest(chain.forward, stages) * setting.micro_batches + messages,
        messages=messages,
        first_token=first,
        token=token if request.generate else None,
        token_busy=setting.micro_batches * (slowest + token_message),
        token_messages=setting.micro_batches * token_message,
    )


def first_token(chain: Chain, heaviest: float, message: float) -> float:
    """Seconds until the last sequence of the batch has its first token."""
    setting = chain.setting
    way = chain.forward[-1] + (setting.pipeline - 1) * message
    return way + (setting.micro_batches - 1) * (heaviest + message)


def each_token(chain: Chain, heaviest: float, message: float) -> float:
    """Seconds from token to token of each sequence: the way through all stages, or the turns of all
    micro-batches at the slowest."""
    setting = chain.setting
    turn = heaviest + (message if setting.pipeline > 1 else 0.0)
    return max(
        chain.token[-1] + setting.pipeline * message * (setting.pipeline > 1),
        setting.micro_batches * turn,
    )


def heaviest(weights: Sequence[float], stages: Sequence[tuple[int, int]]) -> float:
    """The heaviest stage, by sums before each block."""
    return max(weights[end] - weights[first] for first, end in stages)
