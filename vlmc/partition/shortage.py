"""Why nothing fits: the constraint that binds, with its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain as joined
from math import inf

from vlmc.ir.training import why_not_zero, zero_stages
from vlmc.partition.bounds import Bounds
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.leaf import Leaf, fitting
from vlmc.partition.plan import Checkpointing, Memory, Schedule
from vlmc.partition.request import Infeasible
from vlmc.partition.room import memory_of
from vlmc.partition.schedule import refusal
from vlmc.partition.setting import Setting
from vlmc.partition.space import CHUNKS, bases, keeping, kinds, schedules, zero_choices
from vlmc.partition.why import named, seconds

_FIXED = (
    "pipeline", "data", "tensor", "zero", "micro_batch", "schedule", "chunks", "placement",
    "encoder_tensor",
)  # fmt: skip
_PARTLY = "where not all cuts into several stages to a device were looked at"
_STEPS = 30
"""Halvings on the way to the least memory: to a billionth of the device's."""


@dataclass(frozen=True, slots=True)
class _Least:
    """The setting that needs the least memory, and what its fullest device holds."""

    setting: Setting
    memory: Memory
    proven: bool
    """Whether none takes less; not all cuts into several stages to a device may be looked at."""

    @property
    def needs(self) -> int:
        """Bytes that a device has to have."""
        return self.memory.total


def infeasible(lines: Rooflines, unlimited: Leaf | None, *, proven: bool = True) -> Infeasible:
    """The reason why no plan was found. `unlimited`: the fastest where latency has no limits;
    `proven`: whether all plans were looked at."""
    starts = list(joined(bases(lines, across_nodes=False), bases(lines, across_nodes=True)))
    if not starts:
        return _nothing_divides(lines)
    runs = [base for base in starts if schedules(lines, base)]
    if not runs:
        return _no_schedule(lines, starts)
    if not any(_zeros(lines, base) for base in runs):
        return _no_zero(lines, runs)
    least = _least(lines, runs)
    if least is None:
        return _nothing_divides(lines)
    room = lines.cluster.device.memory_bytes
    if least.needs > room:
        return _too_little_memory(lines, least, room)
    return _too_slow(lines, unlimited) if proven else _not_found(lines, least, room)


def _least(lines: Rooflines, starts: list[Setting]) -> _Least | None:
    """Of what takes the least memory at each combination of degrees, the least."""
    bounds = Bounds(lines)
    found: dict[tuple[int, int, int, str, int], tuple[float, Setting]] = {}
    for base in sorted(starts, key=lambda one: (one.micro_batch, not one.sequence_parallel)):
        key = (base.pipeline, base.data, base.tensor, base.placement, base.vision)
        if key not in found and schedules(lines, base):
            found[key] = bounds.states(base), base
    best: _Least | None = None
    for bound, base in sorted(found.values(), key=lambda one: one[0]):
        if best and bound >= best.needs:
            return best
        for one in _leasts(lines, base):
            if best is None or one.needs < best.needs:
                best = one
    return best


def _leasts(lines: Rooflines, base: Setting) -> Iterator[_Least]:
    """What takes the least memory of a base, by the cuts that make that as little as can be."""
    schedule, chunks = _way(lines, base)
    kept: dict[str, Checkpointing] = {one: words[-1] for one, words in kinds(lines).items()}
    for zero in _zeros(lines, base)[-1:]:
        setting = replace(base, zero=zero, keeps=keeping(kept), schedule=schedule, chunks=chunks)
        chain = Chain(lines, setting)
        found = (_least_of(chain, places) for _, _, places in chain.levels)
        known = (one for one in found if one is not None)
        yield from sorted(known, key=lambda one: one.needs)[:1]


def _way(lines: Rooflines, base: Setting) -> tuple[Schedule, int]:
    """The schedule of a base that takes the least memory, with its chunks."""
    ways = schedules(lines, base)
    return ("1f1b", 1) if ("1f1b", 1) in ways else ways[0]


def _zeros(lines: Rooflines, base: Setting) -> list[int]:
    """What replicas may share out under that schedule."""
    allowed = zero_stages(_way(lines, base)[0], base.pipeline)
    return [one for one in zero_choices(lines, base) if one in allowed]


def _least_of(chain: Chain, places: tuple[int, ...]) -> _Least | None:
    """The same among cuts at some places."""
    low, high = 0.0, 1e24
    ends: tuple[int, ...] | None = None
    missed = inf
    for _ in range(2 * _STEPS):
        chain.room = int((low + high) / 2 if low else (high**0.5 if high > 1e12 else high / 2))
        found = fitting(chain, places)
        if found.ends:
            high, ends = chain.room, found.ends
        else:
            low, missed = chain.room, min(missed, found.missed)
        if high - low < 1e6:
            break
    if ends is None:
        return None
    groups, message = enumerate(chain.groups(ends)), chain.largest(places[:-1])
    held = (memory_of(chain, group, one, message) for group, one in groups)
    memory = max(held, key=lambda one: one.total)
    return _Least(chain.setting, memory, proven=missed == inf)


def _asked(lines: Rooflines) -> str:
    """The choices that are fixed."""
    known = ((name, getattr(lines.request, name)) for name in _FIXED)
    return ", ".join(f"{name} {word}" for name, word in known if word is not None)


def _nothing_divides(lines: Rooflines) -> Infeasible:
    request, cluster = lines.request, lines.cluster
    even = (block for block in lines.report.blocks if block.role != "head")
    limits = sorted({limit for block in even for limit in block.tensor_limits if limit > 1})
    fixed = _asked(lines)
    asked = f" with {fixed}" if fixed else ""
    return Infeasible(
        f"{cluster.count} devices cannot be divided{asked}: data must divide the batch of "
        f"{request.batch}, tensor must divide heads and widths "
        f"({', '.join(map(str, limits)) or 'none can be split'}), and a pipeline has at most "
        f"{len(lines.report.order)} stages",
        "Another batch or count, or fewer fixed degrees, would help",
    )


def _no_schedule(lines: Rooflines, starts: list[Setting]) -> Infeasible:
    """What keeps the schedule that is asked for from running, where it has the most micro-batches
    for its groups."""
    request, length = lines.request, len(lines.report.order)
    base = max(starts, key=lambda one: (one.micro_batches / one.pipeline, -one.pipeline))
    groups, times = base.pipeline, base.micro_batches
    chunks = request.chunks or (CHUNKS[0] if request.schedule == "interleaved" else 1)
    schedule = request.schedule or ("interleaved" if chunks > 1 else "1f1b")
    why = refusal(schedule, groups, times, chunks)
    if groups == 1:
        why = f"{chunks} chunks a group need a pipeline, and it has one group"
    elif why is None and groups * chunks > length:
        why = f"{groups} groups of {chunks} chunks need as many blocks, and there are {length}"
    elif why is None and schedule == "zero_bubble" and times < groups:
        why = f"zero_bubble over {groups} ranks is planned with as many micro-batches, not {times}"
    elif why is None and chunks > 1 and times % groups:
        why = (
            f"{schedule} is planned in whole rounds, and {groups} ranks do not divide {times} "
            "micro-batches"
        )
    elif why is None and base.placement == "own_group":
        why = f"{schedule} gives each rank language, too, and the encoder asks for its own group"
    at = f"pipeline {groups} x data {base.data} x tensor {base.tensor}"
    return Infeasible(
        f"No schedule runs with {_asked(lines)}: {why or f'{schedule} cannot run'} (at {at}, "
        f"micro-batches of {base.micro_batch})",
        "Another schedule, batch or micro_batch, or fewer fixed degrees, would help",
    )


def _no_zero(lines: Rooflines, runs: list[Setting]) -> Infeasible:
    """What keeps the zero stage that is asked for from running: one replica, or the schedule."""
    zero = lines.request.zero
    several = [base for base in runs if base.data > 1]
    if zero is not None and several:
        base = several[0]
        schedule, _ = _way(lines, base)
        return Infeasible(
            f"{why_not_zero(zero, schedule)} (at pipeline {base.pipeline} x data {base.data} x "
            f"tensor {base.tensor})",
            f"zero {zero_stages(schedule, base.pipeline)[-1]}, or another schedule, would help",
        )
    return Infeasible(
        f"zero {zero} shares out what replicas hold, and with {_asked(lines)} there is one: it "
        f"needs data > 1 (a batch of {lines.request.batch} on {lines.cluster.count} devices)",
        "zero 0, or more replicas, would help",
    )


def _too_little_memory(lines: Rooflines, least: _Least, room: int) -> Infeasible:
    held = least.memory
    kinds = {name: getattr(held, name) for name in Memory.model_fields}
    sizes = [f"{name} {size / 1e9:.2f}" for name, size in kinds.items() if size >= 5e6]
    greatest = max(kinds, key=lambda name: kinds[name])
    advice = {
        "weights": "more devices, a smaller number format or a smaller model",
        "gradients": "more devices or fewer trained parts",
        "optimiser": "more devices, fewer trained parts, or an optimiser with less state",
        "activations": "shorter text, fewer images or more devices",
        "cache": "a smaller batch or shorter text",
        "vision": "fewer images",
        "buffers": "more tensor parallelism",
        "reserve": "a larger device",
    }[greatest]
    single = _largest_block(lines, least.setting, room)
    least_of = "the least of all plans" if least.proven else f"the least that was found, {_PARTLY}"
    inputs = Chain(lines, least.setting).inputs
    if inputs > room / 2:
        single = "; inputs of all micro-batches of a step, which each device is given, take "
        single += f"{inputs / 1e9:.2f} GB of that"
        advice = "a smaller batch, fewer images or more replicas"
    return Infeasible(
        f"Memory: the fullest device needs at least {least.needs / 1e9:.2f} GB "
        f"({' + '.join(sizes)}) and has {room / 1e9:.2f} GB; that is {least_of}, at "
        f"{named(least.setting, serves=lines.request.mode == 'serve')}{single}",
        f"What would help: {advice}",
    )


def _not_found(lines: Rooflines, least: _Least, room: int) -> Infeasible:
    return Infeasible(
        f"No plan was found, {_PARTLY}: the fullest device of what takes the least memory that was "
        f"found needs {least.needs / 1e9:.2f} of {room / 1e9:.2f} GB, at "
        f"{named(least.setting, serves=lines.request.mode == 'serve')}",
        "Fewer stages to a device, or more memory, would help",
    )


def _largest_block(lines: Rooflines, setting: Setting, room: int) -> str:
    """Said where one block by itself is too much for any device."""
    chain = Chain(lines, setting)
    chain.room = room
    alone = {
        block: memory_of(chain, 0, [(at, at + 1)]).total
        for at, block in enumerate(lines.report.order)
    }
    block = max(alone, key=lambda one: alone[one])
    if alone[block] <= room:
        return ""
    kind = lines.report.blocks[block]
    said = f"; {kind.name} by itself takes {alone[block] / 1e9:.2f} GB"
    if kind.role == "head":
        return said
    limits = ", ".join(map(str, kind.tensor_limits))
    return f"{said}, and tensor parallelism has to divide {limits}"


def _too_slow(lines: Rooflines, unlimited: Leaf | None) -> Infeasible:
    request = lines.request
    limits = [
        f"{what} within {seconds(limit)}"
        for what, limit in (
            ("the first token", request.first_token_limit),
            ("each further token", request.token_limit),
        )
        if limit is not None
    ]
    if unlimited is None or not limits:
        return Infeasible("No cut of the chain of blocks fits where the encoder has to lie")
    pace = unlimited.pace
    without = (
        f"{named(unlimited.chain.setting, serves=True)}, takes {seconds(pace.first_token or 0)}"
    )
    if pace.token is not None:
        without += f" and {seconds(pace.token)}"
    return Infeasible(
        f"Latency: no plan that fits gives {' and '.join(limits)} for a batch of {request.batch} "
        f"on {lines.cluster.count} devices; without that limit the fastest, {without}",
        "A smaller batch, more memory, faster devices or a larger limit would help",
    )
