"""Why a plan and not the next: time, memory and what binds, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from vlmc.partition.leaf import Leaf
from vlmc.partition.room import memory_of
from vlmc.partition.setting import Setting


def why(leaves: Sequence[Leaf], bound: float) -> tuple[str, ...]:
    """Of plans by their speed, fastest first: what the first has over each of the others."""
    best, *others = leaves
    lines = [_choice(best), _binds(best), _proof(best, bound)]
    lines += [_beside(best, other) for other in others]
    if not others:
        lines.append("No other combination of degrees fits.")
    return tuple(lines)


def named(setting: Setting, *, serves: bool = False) -> str:
    """A setting in a few words; a schedule is of training."""
    words = [
        f"pipeline {setting.pipeline} x data {setting.data} x tensor {setting.tensor}",
        f"{setting.micro_batches} micro-batches of {setting.micro_batch}",
    ]
    if setting.pipeline > 1 and not serves:
        chunks = f" with {setting.chunks} stages a group" if setting.chunks > 1 else ""
        words.insert(1, setting.schedule + chunks)
    if setting.copies > 1:
        words.append(f"{setting.copies} copies of the encoder in a tensor group")
    if setting.zero:
        words.append(f"ZeRO {setting.zero}")
    if setting.sequence_parallel:
        words.append("sequence parallel")
    if setting.keeps:
        kept = " and ".join(f"{word} of {name}" for name, word in setting.keeps)
        words.append(f"checkpointing {kept}")
    return ", ".join(words)


def seconds(value: float) -> str:
    """With a unit that suits it."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _choice(leaf: Leaf) -> str:
    pace = leaf.pace
    serves = leaf.chain.lines.request.mode == "serve"
    text = f"{named(leaf.chain.setting, serves=serves)} takes {seconds(pace.seconds)}"
    if pace.token is not None and pace.first_token is not None:
        return (
            f"{text} for all answers: {seconds(pace.first_token)} until the first token, then "
            f"{seconds(pace.token)} for each."
        )
    if serves:
        return f"{text} for all answers, each there when its prompt is read."
    return f"{text} a step, of which {bubble(leaf):.1%} is pipeline bubble."


def bubble(leaf: Leaf) -> float:
    """Share of the time that waits for the pipeline."""
    return max(0.0, 1 - leaf.pace.busy / leaf.pace.seconds)


def fullest(leaf: Leaf) -> float:
    """Bytes of the fullest device."""
    chain, message = leaf.chain, leaf.chain.largest(leaf.ends[:-1])
    groups = enumerate(chain.groups(leaf.ends))
    return max(memory_of(chain, group, held, message).total for group, held in groups)


def balance(leaf: Leaf) -> float:
    """The heaviest group's work over the mean."""
    chain = leaf.chain
    work = [
        sum(chain.work[end] - chain.work[first] for first, end in held)
        for held in chain.groups(leaf.ends)
    ]
    return max(work) * len(work) / sum(work) if sum(work) else 1.0


def _binds(leaf: Leaf) -> str:
    share = fullest(leaf) / leaf.chain.room
    text = f"The fullest device holds {fullest(leaf) / 1e9:.1f} of {leaf.chain.room / 1e9:.1f} GB"
    if share > 0.9:
        text += ": memory binds"
    if leaf.chain.setting.pipeline > 1:
        text += f"; the heaviest pipeline group works {balance(leaf):.3f} times the mean"
    return text + "."


def _proof(leaf: Leaf, bound: float) -> str:
    if bound >= leaf.pace.seconds:
        return "No plan of the space is faster: the search is exhaustive up to proven bounds."
    gap = leaf.pace.seconds / bound - 1
    return f"No plan takes less than {seconds(bound)}: this one is within {gap:.1%} of that."


def _beside(best: Leaf, other: Leaf) -> str:
    slower = other.pace.seconds / best.pace.seconds - 1
    serves = best.chain.lines.request.mode == "serve"
    text = f"{named(other.chain.setting, serves=serves)} takes {slower:.1%} longer"
    reasons = _slower_answer(best, other) if serves else _slower_step(best, other)
    memory = f"and holds {fullest(other) / 1e9:.1f} GB on its fullest device"
    return f"{text}{': ' if reasons else ''}{', '.join(reasons)}{', ' if reasons else ' '}{memory}."


def _slower_answer(best: Leaf, other: Leaf) -> list[str]:
    reasons: list[str] = []
    for what, one, two in (
        ("the first token", best.pace.first_token, other.pace.first_token),
        ("each further token", best.pace.token, other.pace.token),
    ):
        if one is not None and two is not None and two > one * 1.005:
            reasons.append(f"{what} takes {seconds(two)}, not {seconds(one)}")
    return reasons


def _slower_step(best: Leaf, other: Leaf) -> list[str]:
    work = other.pace.busy / best.pace.busy - 1
    reasons: list[str] = []
    if work > 0.005:
        reasons.append(f"its busiest device has {work:.1%} more to do")
    if bubble(other) - bubble(best) > 0.005:
        reasons.append(f"its bubble is {bubble(other):.1%} of the time")
    if balance(other) - balance(best) > 0.005:
        reasons.append(f"its heaviest group works {balance(other):.2f} times the mean")
    return reasons
