"""A setting with its cuts becomes a ParallelPlan with what it is expected to take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from vlmc.partition.chain import Chain
from vlmc.partition.leaf import Leaf
from vlmc.partition.pace import pace
from vlmc.partition.plan import (
    Holding,
    Kept,
    Mesh,
    ParallelPlan,
    Placement,
    PlannedStage,
    Predicted,
)
from vlmc.partition.room import fullest, memory_of, with_reserve
from vlmc.partition.traffic import collectives, token_collectives

MOST_AT_ONCE = 2**20
"""Sequences that a replica answers at once, at most, where nothing else bounds them."""


def write(leaf: Leaf, bound: float) -> ParallelPlan:
    """The plan. `bound`: seconds that none beats."""
    chain = leaf.chain
    lines, setting, request = chain.lines, chain.setting, chain.lines.request
    mesh = Mesh(pipeline=setting.pipeline, data=setting.data, tensor=setting.tensor)
    learns = {block.role for block in lines.report.blocks if block.parameters}
    apart = Mesh(pipeline=1, data=setting.data * setting.copies, tensor=setting.vision)
    return ParallelPlan(
        design=lines.report.design,
        spec=request.spec,
        mode=request.mode,
        hardware=lines.cluster.device.name,
        count=lines.cluster.count,
        per_node=lines.cluster.per_node,
        trained=tuple(role for role in lines.report.trained if role in learns),
        precision=request.precision,
        optimiser=request.optimiser,
        learning_rate=request.learning_rate,
        epochs=request.epochs,
        mesh=mesh,
        encoder=apart if setting.copies > 1 else None,
        placement=placement(leaf),
        sequence_parallel=setting.sequence_parallel,
        zero=setting.zero,  # pyright: ignore[reportArgumentType]
        batch=request.batch,
        micro_batch=setting.micro_batch,
        text=request.text,
        images=request.images,
        schedule=setting.schedule,
        chunks=setting.chunks,
        checkpointing=dict(setting.keeps),
        stages=tuple(_stages(leaf)),
        predicted=_predicted(leaf),
        bound_seconds=bound,
    )


def placement(leaf: Leaf) -> Placement:
    """The narrowest name of where the encoder's side lies."""
    setting, encoder = leaf.chain.setting, leaf.chain.encoder
    if setting.placement == "replicated" and setting.tensor == 1:
        return "stage_0"
    if setting.placement != "spread":
        return setting.placement
    if leaf.ends[0] >= encoder:
        return "stage_0"
    if encoder in leaf.ends[:-1] and setting.chunks == 1:
        return "own_group"
    return "spread"


def _stages(leaf: Leaf) -> Iterator[PlannedStage]:
    report = leaf.chain.lines.report
    seen: Counter[str] = Counter()
    for stage, (first, end) in enumerate(pairwise((0, *leaf.ends))):
        holds: list[Holding] = []
        for block in report.order[first:end]:
            name = report.blocks[block].name
            place = seen[name]
            seen[name] += 1
            if holds and holds[-1].block == name:
                holds[-1] = Holding(block=name, first=holds[-1].first, last=place)
            else:
                holds.append(Holding(block=name, first=place, last=place))
        yield PlannedStage(group=stage % leaf.chain.setting.pipeline, holds=tuple(holds))


def _predicted(leaf: Leaf) -> Predicted:
    chain, found = leaf.chain, leaf.pace
    request, cluster = chain.lines.request, chain.lines.cluster
    groups = chain.groups(leaf.ends)
    message = chain.largest(leaf.ends[:-1])
    memory = tuple(memory_of(chain, group, held, message) for group, held in enumerate(groups))
    moved = tuple(one for one in collectives(leaf) if one.bytes)
    compute = max(0.0, found.busy - sum(one.seconds for one in moved))
    peak = cluster.device.tflops[request.precision] * 1e12 * cluster.count
    batches = request.batch / chain.setting.micro_batch
    flops = chain.lines.flops(chain.setting.micro_batch) * batches
    if request.mode == "train":
        return Predicted(
            memory=memory,
            kept=tuple(_kept(leaf)),
            compute_seconds=compute,
            collectives=moved,
            bubble_seconds=max(0.0, found.seconds - found.busy),
            step_seconds=found.seconds,
            mfu=flops / found.seconds / peak,
        )
    tokens = request.batch * request.generate
    cost = None
    if cluster.price and tokens:
        cost = cluster.price / 3600 * cluster.count * found.seconds / tokens * 1e6
    first = found.first_token or found.seconds
    of_tokens = tuple(one for one in token_collectives(leaf) if one.bytes)
    turns = found.token_busy * request.steps
    return Predicted(
        memory=memory,
        compute_seconds=compute,
        token_compute_seconds=max(0.0, turns - sum(one.seconds for one in of_tokens))
        if request.generate
        else None,
        collectives=moved + of_tokens,
        bubble_seconds=max(0.0, first - found.busy),
        token_bubble_seconds=max(0.0, found.seconds - first - turns) if request.generate else None,
        step_seconds=found.seconds,
        mfu=flops / first / peak,
        first_token_seconds=first,
        token_seconds=found.token,
        images_per_second=request.batch * request.images / found.seconds,
        largest_batch=_largest_batch(leaf),
        cost_per_million_tokens=cost,
    )


def _kept(leaf: Leaf) -> Iterator[Kept]:
    chain, pipeline = leaf.chain, leaf.chain.setting.pipeline
    held = [fullest(chain, group, of)[2] for group, of in enumerate(chain.groups(leaf.ends))]
    for stage, (first, end) in enumerate(pairwise((0, *leaf.ends))):
        in_flight = held[stage % pipeline][stage // pipeline]
        yield Kept(bytes=int(chain.saved[end] - chain.saved[first]), in_flight=in_flight)


def _largest_batch(leaf: Leaf) -> int:
    """Sequences that are answered at once with the plan's degrees and cuts, within memory and the
    limits of latency: micro-batches whose caches lie beside each other, or, of a design that keeps
    no cache, one micro-batch as large as can be."""
    chain, setting, cuts = leaf.chain, leaf.chain.setting, leaf.ends[:-1]
    message, groups = chain.largest(cuts), chain.groups(leaf.ends)
    memories = [memory_of(chain, group, held, message) for group, held in enumerate(groups)]

    def caches_fit(times: int) -> bool:
        trial = chain.scheduled(replace(setting, micro_batches=times))
        more = times / setting.micro_batches - 1
        held = (one.total - one.reserve + more * one.cache for one in memories)
        return with_reserve(chain, max(held)) <= chain.room and _in_time(trial, leaf)

    def passes(size: int) -> bool:
        trial = Chain(chain.lines, replace(setting, micro_batch=size, micro_batches=1))
        sent = trial.largest(cuts)
        held = (memory_of(trial, group, one, sent) for group, one in enumerate(groups))
        return max(one.total for one in held) <= trial.room and _in_time(trial, leaf)

    if any(one.cache for one in memories):
        return _most(caches_fit, setting.micro_batches) * setting.micro_batch * setting.data
    most = _most(passes, setting.micro_batch)
    return max(most, setting.micro_batch * setting.micro_batches) * setting.data


def _in_time(trial: Chain, leaf: Leaf) -> bool:
    """Whether the plan's cuts keep the limits of latency under another setting."""
    request, found = trial.lines.request, pace(trial, leaf.ends)
    limits = (found.first_token, request.first_token_limit), (found.token, request.token_limit)
    return all(one is None or limit is None or one <= limit for one, limit in limits)


def _most(does: Callable[[int], bool], known: int) -> int:
    """The greatest size that does, from one that is known to; up to MOST_AT_ONCE."""
    low, high = known, 2 * known
    while high < MOST_AT_ONCE and does(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if does(middle) else (low, middle)
    return low
