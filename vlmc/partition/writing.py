"""A setting with its cuts becomes a ParallelPlan with what it is expected to take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from vlmc.hardware.device import BYTES
from vlmc.partition.chain import RESERVE, Chain
from vlmc.partition.leaf import Leaf
from vlmc.partition.pace import pace
from vlmc.partition.part import keeps
from vlmc.partition.plan import (
    Collective,
    Holding,
    Kept,
    Mesh,
    ParallelPlan,
    Placement,
    PlannedStage,
    Predicted,
)

MOST_AT_ONCE = 2**20
"""Sequences that a replica answers at once, at most, where nothing else bounds them."""


def write(leaf: Leaf, bound: float) -> ParallelPlan:
    """The plan. `bound`: seconds that none beats."""
    chain = leaf.chain
    lines, setting, request = chain.lines, chain.setting, chain.lines.request
    mesh = Mesh(pipeline=setting.pipeline, data=setting.data, tensor=setting.tensor)
    apart = Mesh(pipeline=1, data=setting.data * setting.tensor, tensor=1)
    return ParallelPlan(
        design=lines.report.design,
        spec=request.spec,
        mode=request.mode,
        hardware=lines.cluster.device.name,
        count=lines.cluster.count,
        per_node=lines.cluster.per_node,
        trained=lines.report.trained,
        precision=request.precision,
        optimiser=request.optimiser,
        mesh=mesh,
        encoder=apart if setting.placement == "replicated" and setting.tensor > 1 else None,
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
    memory = tuple(chain.memory(group, held) for group, held in enumerate(groups))
    collectives = tuple(one for one in _collectives(leaf) if one.bytes)
    hidden = found.busy - sum(one.seconds for one in collectives)
    peak = cluster.device.tflops[request.precision] * 1e12 * cluster.count
    batches = request.batch / chain.setting.micro_batch
    flops = chain.lines.flops(chain.setting.micro_batch) * batches
    if request.mode == "train":
        return Predicted(
            memory=memory,
            kept=tuple(_kept(leaf)),
            compute_seconds=max(0.0, hidden),
            collectives=collectives,
            bubble_seconds=max(0.0, found.seconds - found.busy),
            step_seconds=found.seconds,
            mfu=flops / found.seconds / peak,
        )
    tokens = request.batch * request.generate
    cost = None
    if cluster.price and tokens:
        cost = cluster.price / 3600 * cluster.count * found.seconds / tokens * 1e6
    first = found.first_token or found.seconds
    return Predicted(
        memory=memory,
        compute_seconds=max(0.0, hidden),
        collectives=collectives,
        bubble_seconds=max(0.0, first - found.busy),
        step_seconds=found.seconds,
        mfu=flops / first / peak,
        first_token_seconds=first,
        token_seconds=found.token,
        images_per_second=request.batch * request.images / found.seconds,
        largest_batch=_largest_batch(leaf),
        cost_per_million_tokens=cost,
    )


def _kept(leaf: Leaf) -> Iterator[Kept]:
    chain = leaf.chain
    for stage, (first, end) in enumerate(pairwise((0, *leaf.ends))):
        held = chain.held[stage % chain.setting.pipeline]
        yield Kept(bytes=int(chain.saved[end] - chain.saved[first]), in_flight=held)


def _largest_batch(leaf: Leaf) -> int:
    """Sequences that are answered at once with the plan's degrees and cuts, within memory and the
    limits of latency: micro-batches whose caches lie beside each other, or, of a design that keeps
    no cache, one micro-batch as large as can be."""
    chain, setting = leaf.chain, leaf.chain.setting
    memories = [chain.memory(group, held) for group, held in enumerate(chain.groups(leaf.ends))]

    def caches_fit(times: int) -> bool:
        trial = chain.scheduled(replace(setting, micro_batches=times))
        more = times / setting.micro_batches - 1
        held = (one.total - one.reserve + more * one.cache for one in memories)
        return max(held) * (1 + RESERVE) + chain.context <= chain.room and _in_time(trial, leaf)

    def passes(size: int) -> bool:
        trial = Chain(chain.lines, replace(setting, micro_batch=size, micro_batches=1))
        held = (trial.memory(group, one) for group, one in enumerate(trial.groups(leaf.ends)))
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


def _collectives(leaf: Leaf) -> Iterator[Collective]:
    """Of the busiest pipeline group, in one step."""
    chain, setting = leaf.chain, leaf.chain.setting
    held = max(
        chain.groups(leaf.ends),
        key=lambda stretches: sum(chain.work[end] - chain.work[first] for first, end in stretches),
    )
    blocks = [block for first, end in held for block in chain.lines.report.order[first:end]]
    yield from _tensor(chain, blocks)
    message = max(map(chain.carried, leaf.ends[:-1]), default=0.0)
    times = setting.micro_batches * setting.chunks
    ways = 2 if chain.lines.request.mode == "train" else 1
    yield Collective(
        kind="send",
        purpose="activations and their gradients between stages",
        group=2,
        bytes=int(message * times * ways),
        seconds=leaf.pace.messages,
    )
    if chain.lines.request.mode == "train" and setting.data > 1:
        yield from _replicas(chain, blocks)


def _tensor(chain: Chain, blocks: list[int]) -> Iterator[Collective]:
    lines, setting = chain.lines, chain.setting
    costs = lines.blocks(
        setting.micro_batch,
        setting.tensor,
        setting.sequence_parallel,
        setting.placement == "replicated",
    )
    size, seconds, gathered, waits = 0.0, 0.0, 0.0, 0.0
    for number in blocks:
        block, cost = lines.report.blocks[number], costs[number]
        again = keeps(setting, block) == "full"
        times = 1 + (block.reached and lines.request.mode == "train") * (1 + again)
        size += cost.exchanged * times * setting.micro_batches
        seconds += cost.exchange_seconds * times * setting.micro_batches
        gathered += sum(cost.gathered) * setting.micro_batches
        waits += sum(cost.gather_seconds) * setting.micro_batches
    if not setting.sequence_parallel:
        yield Collective(
            kind="all_reduce",
            purpose="partial sums of tensor parallelism",
            group=setting.tensor,
            bytes=int(size),
            seconds=seconds,
        )
        return
    yield Collective(
        kind="all_gather",
        purpose="sequences before split layers",
        group=setting.tensor,
        bytes=int(size + gathered),
        seconds=seconds / 2 + waits,
    )
    yield Collective(
        kind="reduce_scatter",
        purpose="sequences after split layers",
        group=setting.tensor,
        bytes=int(size),
        seconds=seconds / 2,
    )


def _replicas(chain: Chain, blocks: list[int]) -> Iterator[Collective]:
    """Gradients and weights between replicas; seconds are those that compute does not hide."""
    lines, setting = chain.lines, chain.setting
    costs = lines.blocks(
        setting.micro_batch,
        setting.tensor,
        setting.sequence_parallel,
        setting.placement == "replicated",
    )
    report, times = lines.report, setting.micro_batches
    number = BYTES[lines.request.precision]
    kept = [costs[one].parameters for one in blocks]
    trained = sum(costs[one].parameters for one in blocks if report.blocks[one].trained)
    stepped = sum(costs[one].parameters for one in blocks if report.blocks[one].stepped)
    seconds = sum(
        times * chain.parts[one].gathered + chain.parts[one].tail - chain.parts[one].update
        for one in blocks
    )
    gathers = {0: 0.0, 1: trained * number, 2: trained * number}.get(setting.zero)
    if gathers is None:
        reached = sum(costs[one].parameters for one in blocks if report.blocks[one].reached)
        gathers = times * number * (sum(kept) + reached)
    scatters = stepped * 4 * (times if setting.zero >= 2 else 1)
    moved = gathers + scatters
    if setting.zero == 0:
        yield Collective(
            kind="all_reduce",
            purpose="gradients of replicas",
            group=setting.data,
            bytes=int(scatters),
            seconds=seconds,
        )
        return
    yield Collective(
        kind="reduce_scatter",
        purpose="gradients of replicas",
        group=setting.data,
        bytes=int(scatters),
        seconds=seconds * scatters / moved if moved else 0.0,
    )
    yield Collective(
        kind="all_gather",
        purpose="weights of replicas",
        group=setting.data,
        bytes=int(gathers),
        seconds=seconds * gathers / moved if moved else 0.0,
    )
