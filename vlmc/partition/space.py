"""Which settings there are: what divides what, and what is known to be no better than another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from vlmc.ir.training import ZERO_STAGES
from vlmc.partition.chain import encoder_length
from vlmc.partition.costs import ENCODER_SIDE, Rooflines, splits, unsplit
from vlmc.partition.plan import Checkpointing, Placement, Schedule
from vlmc.partition.schedule import refusal
from vlmc.partition.setting import Setting
from vlmc.runtime.parallel.plan_rules import may_share_sequences, puts_off
from vlmc.runtime.parallel.split_rules import shares_words

CHUNKS = (2, 4, 8)
"""Stages that a rank may hold with the interleaved schedule, unless others are asked for."""
KEEPS: tuple[Checkpointing, ...] = ("none", "selective", "full")
SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "zero_bubble")


@cache
def divisors(number: int) -> tuple[int, ...]:
    """All of them, rising."""
    found, rest, prime = [1], number, 2
    while rest > 1:
        if prime * prime > rest:
            prime = rest
        power, before = 1, tuple(found)
        while rest % prime == 0:
            rest, power = rest // prime, power * prime
            found += [one * power for one in before]
        prime += 1
    return tuple(sorted(found))


def bases(lines: Rooflines, *, across_nodes: bool) -> Iterator[Setting]:
    """Degrees, micro-batch and sequence parallelism; the rest as Setting has it. `across_nodes`:
    only tensor groups that span nodes, or only those that do not."""
    request, cluster = lines.request, lines.cluster
    length = len(lines.report.order)
    for tensor in divisors(cluster.count):
        if request.tensor not in (None, tensor) or not language_splits(lines, tensor):
            continue
        if within_node(tensor, cluster.count, cluster.per_node) == across_nodes:
            continue
        for data in divisors(cluster.count // tensor):
            pipeline = cluster.count // tensor // data
            if request.data not in (None, data) or request.pipeline not in (None, pipeline):
                continue
            if pipeline > length or request.batch % data:
                continue
            for micro_batch in divisors(request.batch // data):
                if request.micro_batch not in (None, micro_batch):
                    continue
                for sequence in sequences(lines, tensor):
                    for placement, degree in placements(lines, tensor, pipeline):
                        yield Setting(
                            pipeline=pipeline,
                            data=data,
                            tensor=tensor,
                            sequence_parallel=sequence,
                            micro_batch=micro_batch,
                            micro_batches=request.batch // data // micro_batch,
                            placement=placement,
                            encoder_tensor=degree,
                        )


def within_node(tensor: int, count: int, per_node: int) -> bool:
    """Whether no tensor group spans nodes."""
    return tensor <= per_node and (count <= per_node or per_node % tensor == 0)


def language_splits(lines: Rooflines, tensor: int) -> bool:
    """Whether the degree divides whatever of the language model can be split, and each device has
    words of a head's."""
    blocks = tuple(block for block in lines.report.blocks if block.role not in ENCODER_SIDE)
    common = splits(blocks)
    heads = (block for block in blocks if block.role == "head" and not unsplit(block))
    words = all(shares_words(block.tensor_limits[0], tensor) for block in heads)
    return tensor == 1 or (common > 0 and common % tensor == 0 and words)


def sequences(lines: Rooflines, tensor: int) -> tuple[bool, ...]:
    """Sequence parallelism, where train.py runs it, and none."""
    wanted = lines.request.sequence_parallel
    able = may_share_sequences(lines.request.mode == "train", tensor)
    return tuple(one for one in (True, False) if wanted in (None, one) and (able or not one))


def placements(
    lines: Rooflines, tensor: int, pipeline: int
) -> tuple[tuple[Placement, int | None], ...]:
    """Where the encoder may be, and the tensor degree of one that is replicated. stage_0 and
    own_group are cuts that spread has, too, at the same cost, so that they need no search of their
    own unless they are asked for."""
    wanted, encoder = lines.request.placement, encoder_length(lines)
    if not encoder:
        return (("spread", None),) if wanted in (None, "spread", "stage_0") else ()
    if wanted == "own_group" and (pipeline == 1 or encoder == len(lines.report.order)):
        return ()
    degrees = encoder_degrees(lines, tensor)
    found: list[tuple[Placement, int | None]] = []
    if tensor in degrees and wanted != "replicated":
        found.append((wanted or "spread", None))
    if wanted == "replicated" and tensor == 1:
        return (("replicated", 1),) if degrees else ()
    if wanted in (None, "replicated"):
        found.extend(("replicated", degree) for degree in degrees if degree < tensor)
    return tuple(found)


def encoder_degrees(lines: Rooflines, tensor: int) -> list[int]:
    """Ranks of a tensor group over which encoder and adapter may be split, rising. Where nothing of
    them can be split, several would only do the same."""
    wanted = lines.request.encoder_tensor
    common = splits(tuple(one for one in lines.report.blocks if one.role in ENCODER_SIDE))
    if wanted is None and not common:
        return sorted({1, tensor})
    return [
        one for one in divisors(tensor) if wanted in (None, one) and (one == 1 or not common % one)
    ]


def zero_choices(lines: Rooflines, base: Setting) -> tuple[int, ...]:
    """What replicas may share out, rising. One replica shares nothing."""
    wanted = lines.request.zero
    if lines.request.mode == "serve":
        return (0,)
    if base.data == 1:
        return (0,) if wanted in (None, 0) else ()
    if wanted is not None:
        return (wanted,)
    # With one micro-batch gradients are reduced as they are made: nothing is left to stage 1.
    once = base.pipeline == base.micro_batches == 1
    return tuple(one for one in ZERO_STAGES if not (once and one == 1))


def kinds(lines: Rooflines) -> dict[str, tuple[Checkpointing, ...]]:
    """By kind of block what it may keep. A kind is a stack that gradients reach, as train.py tells
    blocks apart; what stands beside the stacks is never computed again."""
    asked, blocks = lines.request.checkpointing, lines.report.blocks
    if lines.request.mode == "serve":
        return {}
    found: dict[str, tuple[Checkpointing, ...]] = {}
    for name in dict.fromkeys(one.name for one in blocks if one.reached and "*" in one.name):
        word = asked.get(name) if isinstance(asked, Mapping) else asked
        found[name] = KEEPS if word is None else (word,)
    return found


def keeping(words: Mapping[str, Checkpointing]) -> tuple[tuple[str, Checkpointing], ...]:
    """As a setting carries it."""
    return tuple((name, word) for name, word in words.items() if word != "none")


def schedules(lines: Rooflines, base: Setting) -> tuple[tuple[Schedule, int], ...]:
    """Schedules with their chunks. With one group all are the same. gpipe takes no less time and
    no less memory than 1f1b, so that it is searched where 1f1b cannot run or it is asked for."""
    request, groups, times = lines.request, base.pipeline, base.micro_batches
    if request.mode == "serve":
        return (("gpipe", 1),)
    if groups == 1:
        return ((request.schedule or "1f1b", 1),) if request.chunks in (None, 1) else ()
    found: list[tuple[Schedule, int]] = []
    for schedule in SCHEDULES:
        if request.schedule not in (None, schedule):
            continue
        if schedule == "gpipe" and request.schedule is None and times >= groups:
            continue
        if schedule == "zero_bubble" and times < groups:
            continue  # no closed form says what it takes
        if base.sequence_parallel and puts_off(schedule, groups):
            continue
        several = (request.chunks,) if request.chunks else CHUNKS
        for chunks in several if schedule == "interleaved" else (1,):
            if request.chunks not in (None, chunks):
                continue
            if groups * chunks > len(lines.report.order) or (chunks > 1 and times % groups):
                continue
            if schedule == "interleaved" and base.placement == "own_group":
                continue
            if refusal(schedule, groups, times, chunks) is None:
                found.append((schedule, chunks))
    return tuple(found)
