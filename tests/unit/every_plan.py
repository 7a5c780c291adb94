"""Brute force over the space of plans, written plainly. It shares with the search nothing but what
a setting with given cuts takes in time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, product
from random import Random
from typing import Any

from graph_reports import cluster, random_report, small_device

from vlmc.analysis.report import GraphReport
from vlmc.hardware.cluster import Cluster
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.pace import pace
from vlmc.partition.request import Request
from vlmc.partition.setting import Setting

VISION = ("encoder", "select", "adapter")
MOST_ZERO = {"interleaved": 2, "zero_bubble": 1}


def fastest(
    report: GraphReport, devices: Cluster, request: Request, decode: GraphReport | None = None
) -> float | None:
    """Seconds of the fastest of all plans; None where none fits."""
    prompt = request.text - request.generate if request.mode == "serve" else request.text
    lines = Rooflines(report, devices, request, max(1, prompt))
    tokens = Rooflines(decode, devices, request) if decode else None
    for within in (True, False):
        best: float | None = None
        for setting in every_setting(report, devices, request, within):
            chain = Chain(lines, setting, tokens)
            for ends in every_cut(report, setting):
                if not fits(chain, ends):
                    continue
                found = pace(chain, ends)
                if request.first_token_limit and found.first_token > request.first_token_limit:  # type: ignore[operator]
                    continue
                if request.token_limit and found.token > request.token_limit:  # type: ignore[operator]
                    continue
                if best is None or found.seconds < best:
                    best = found.seconds
        if best is not None:
            return best
    return None


def fits(chain: Chain, ends: tuple[int, ...]) -> bool:
    """Memory: of each device; with several stages a device, as if all were like each of them."""
    if chain.setting.chunks > 1:
        stages = enumerate(pairwise((0, *ends)))
        return all(chain.fits(stage, first, end) for stage, (first, end) in stages)
    return all(
        chain.memory(group, held).total <= chain.room
        for group, held in enumerate(chain.groups(ends))
    )


def every_cut(report: GraphReport, setting: Setting) -> Iterator[tuple[int, ...]]:
    """All ways to cut the chain that suit the encoder's placement."""
    length = len(report.order)
    roles = [report.blocks[block].role for block in report.order]
    vision = sum(role in VISION for role in roles)
    for cuts in combinations(range(1, length), setting.pipeline * setting.chunks - 1):
        if setting.placement in ("stage_0", "replicated") and cuts and cuts[0] < vision:
            continue
        if setting.placement == "own_group" and vision not in cuts:
            continue
        yield (*cuts, length)


def every_setting(
    report: GraphReport, devices: Cluster, request: Request, within: bool
) -> Iterator[Setting]:
    """All degrees and choices whose divisions come out even."""
    count = devices.count
    vision = [block for block in report.blocks if block.role in VISION]
    language = [block for block in report.blocks if block.role not in VISION]
    serve = request.mode == "serve"
    for pipeline, data, tensor in product(range(1, count + 1), repeat=3):
        if pipeline * data * tensor != count or request.batch % data:
            continue
        alone = devices.count <= devices.per_node or devices.per_node % tensor == 0
        if (tensor <= devices.per_node and alone) != within:
            continue
        if not divides(tensor, language) or (tensor > 1 and not can_split(language)):
            continue
        for micro_batch in range(1, request.batch // data + 1):
            if request.batch // data % micro_batch:
                continue
            for sequence, zero, way, keeps, placement in product(
                (False,),
                (0,) if data == 1 or serve else (0, 1, 2, 3),
                [("gpipe", 1)] if serve else ways(pipeline, request.batch // data // micro_batch),
                [("none", "none")] if serve else every_checkpointing(report),
                ("stage_0", "own_group", "replicated", "spread"),
            ):
                if placement in ("own_group", "replicated") and not vision:
                    continue
                if placement != "replicated" and not divides(tensor, vision):
                    continue
                if placement == "own_group" and way[0] == "interleaved":
                    continue
                if pipeline > 1 and zero > MOST_ZERO.get(way[0], 3):
                    continue
                if wrong(request, pipeline, data, tensor, zero, way[0], placement):
                    continue
                yield Setting(
                    pipeline=pipeline,
                    data=data,
                    tensor=tensor,
                    sequence_parallel=sequence,
                    zero=zero,
                    micro_batch=micro_batch,
                    micro_batches=request.batch // data // micro_batch,
                    schedule=way[0],
                    chunks=way[1],
                    encoder_keeps=keeps[0],
                    language_keeps=keeps[1],
                    placement=placement,
                )


def wrong(request: Request, *chosen: Any) -> bool:
    """Whether something else was asked for."""
    names = ("pipeline", "data", "tensor", "zero", "schedule", "placement")
    wanted = [getattr(request, name) for name in names]
    return any(one not in (None, two) for one, two in zip(wanted, chosen, strict=True))


def ways(pipeline: int, times: int) -> Iterator[tuple[Any, int]]:
    """Schedules with their chunks that can run so many micro-batches."""
    if pipeline == 1:
        for schedule in ("gpipe", "1f1b", "interleaved", "zero_bubble"):
            yield schedule, 1
        return
    yield "gpipe", 1
    if times >= pipeline:
        yield "1f1b", 1
    if times >= pipeline and times % (times // pipeline) == 0:
        yield "zero_bubble", 1
    if times % pipeline == 0:
        for chunks in (2, 4, 8):
            yield "interleaved", chunks


def every_checkpointing(report: GraphReport) -> list[tuple[Any, Any]]:
    """Of the encoder's side and of the rest; where no stack saves anything, all are the same."""
    words = ("none", "selective", "full")
    stacks = [block for block in report.blocks if block.reached and "*" in block.name]
    vision = any(block.role in VISION for block in stacks)
    language = any(block.role not in VISION for block in stacks)
    return list(product(words if vision else words[:1], words if language else words[:1]))


def divides(tensor: int, blocks: list[Any]) -> bool:
    """Whether the degree divides every limit of the blocks that can be split."""
    return all(
        limit % tensor == 0
        for block in blocks
        if block.tensor_limits != (1,)
        for limit in block.tensor_limits
    )


def can_split(blocks: list[Any]) -> bool:
    """Whether any of them can be split."""
    return any(block.tensor_limits != (1,) for block in blocks)


def instance(seed: int) -> tuple[GraphReport, Cluster, Request, GraphReport | None]:
    """A random question, small enough that all plans can be tried."""
    random = Random(seed)
    serve = random.random() < 0.2
    state = random.getrandbits(32)
    report = random_report(Random(state), "prefill" if serve else "train")
    decode = random_report(Random(state), "decode") if serve else None
    count = random.choice([1, 2, 2, 3, 4, 4, 4, 6])
    devices = cluster(
        small_device(random.choice([0.05, 0.08, 0.12, 0.2, 0.4, 1.0])),
        count,
        random.choice([1, 2, 8]) if count % 2 == 0 else 8,
    )
    fixed: dict[str, Any] = {}
    if not serve and random.random() < 0.2:
        fixed["schedule"] = random.choice(["gpipe", "1f1b", "interleaved", "zero_bubble"])
    if count > 1 and random.random() < 0.6:
        fixed["pipeline"] = random.choice([one for one in range(2, count + 1) if count % one == 0])
    if random.random() < 0.2:
        fixed["placement"] = random.choice(["stage_0", "own_group", "replicated", "spread"])
    if serve and random.random() < 0.5:
        fixed["token_limit"] = random.choice([1e-3, 3e-3, 1e-2])
    request = Request(
        mode="serve" if serve else "train",
        batch=random.choice([1, 2, 4, 6, 8]),
        text=random.choice([16, 31, 64, 128]),
        images=random.choice([0, 1, 2]),
        tokens=random.choice([1, 16]),
        generate=8,
        **fixed,
    )
    return report, devices, request, decode
