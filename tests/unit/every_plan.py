"""Brute force over the space of plans, written plainly. It shares with the search nothing but what
a setting with given cuts takes in time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, product
from random import Random
from typing import Any

from graph_reports import cluster, random_report, small_device

from vlmc.analysis.report import GraphReport
from vlmc.hardware.cluster import Cluster
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.pace import pace
from vlmc.partition.request import Request
from vlmc.partition.room import memory_of
from vlmc.partition.search import find
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
        chains: dict[Setting, Chain] = {}
        for setting, cuts in every_setting(report, devices, request, within):
            alike = replace(setting, schedule="gpipe", chunks=1)
            if alike not in chains:
                chains[alike] = Chain(lines, alike, tokens)
            chain = chains[alike].scheduled(setting)
            for ends in cuts:
                found = pace(chain, ends)
                if best is not None and found.seconds >= best:
                    continue
                if request.first_token_limit and found.first_token > request.first_token_limit:  # type: ignore[operator]
                    continue
                if request.token_limit and found.token > request.token_limit:  # type: ignore[operator]
                    continue
                if fits(chain, ends):
                    best = found.seconds
        if best is not None:
            return best
    return None


def fits(chain: Chain, ends: tuple[int, ...]) -> bool:
    """Whether there is memory for all that each device holds."""
    message = chain.largest(ends[:-1])
    return all(
        memory_of(chain, group, held, message).total <= chain.room
        for group, held in enumerate(chain.groups(ends))
    )


def every_cut(report: GraphReport, stages: int, placements: set[str]) -> list[tuple[int, ...]]:
    """All ways to cut the chain that suit any of the encoder's placements."""
    length = len(report.order)
    roles = [report.blocks[block].role for block in report.order]
    vision = sum(role in VISION for role in roles)
    found: list[tuple[int, ...]] = []
    for cuts in combinations(range(1, length), stages - 1):
        suits = {
            "spread": True,
            "stage_0": not cuts or cuts[0] >= vision,
            "replicated": not cuts or cuts[0] >= vision,
            "own_group": vision in cuts,
        }
        if any(suits[placement] for placement in placements):
            found.append((*cuts, length))
    return found


def every_setting(
    report: GraphReport, devices: Cluster, request: Request, within: bool
) -> Iterator[tuple[Setting, list[tuple[int, ...]]]]:
    """All degrees and choices whose divisions come out even, with all cuts. Placements of the
    encoder at which the same cuts cost the same are looked at together."""
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
            apart = [
                (("replicated",), own) for own in range(1, max(2, tensor)) if tensor % own == 0
            ]
            for sequence, zero, way, (alike, degree) in product(
                (False, True) if tensor > 1 and not serve else (False,),
                (0,) if data == 1 or serve else (0, 1, 2, 3),
                [("gpipe", 1)] if serve else ways(pipeline, request.batch // data // micro_batch),
                [(("stage_0", "own_group", "spread"), None), *apart],
            ):
                own = degree or tensor
                placements = {
                    placement
                    for placement in alike
                    if (vision or placement not in ("own_group", "replicated"))
                    and (divides(own, vision) or own == 1)
                    and not (placement == "own_group" and way[0] == "interleaved")
                    and not wrong(request, pipeline, data, tensor, zero, way[0], placement)
                    and (not vision or request.encoder_tensor in (None, own))
                }
                whole = sequence and way[0] == "zero_bubble"
                if pipeline > 1 and (whole or zero > MOST_ZERO.get(way[0], 3)):
                    continue
                cuts = every_cut(report, pipeline * way[1], placements)
                for keeps in [()] if serve or not cuts else every_checkpointing(report, request):
                    setting = Setting(
                        pipeline=pipeline,
                        data=data,
                        tensor=tensor,
                        sequence_parallel=sequence,
                        zero=zero,
                        micro_batch=micro_batch,
                        micro_batches=request.batch // data // micro_batch,
                        schedule=way[0],
                        chunks=way[1],
                        keeps=keeps,
                        placement=alike[-1],
                        encoder_tensor=degree,
                    )
                    yield setting, cuts


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


def every_checkpointing(report: GraphReport, request: Request) -> list[tuple[tuple[str, Any], ...]]:
    """Every word for every stack that saves anything, unless one is asked for."""
    stacks = sorted({one.name for one in report.blocks if one.reached and "*" in one.name})
    said = request.checkpointing
    words = [
        said if isinstance(said, str) else (said or {}).get(stack, ("none", "selective", "full"))
        for stack in stacks
    ]
    every = product(*((one,) if isinstance(one, str) else one for one in words))
    return [tuple(zip(stacks, each, strict=True)) for each in every]


def divides(tensor: int, blocks: list[Any]) -> bool:
    """Whether the degree divides every limit of the blocks that can be split. Words of a head come
    in equal piles but for the last one, which is none that is empty."""
    heads = [block.tensor_limits[0] for block in blocks if block.role == "head"]
    return all(
        limit % tensor == 0
        for block in blocks
        if block.tensor_limits != (1,) and block.role != "head"
        for limit in block.tensor_limits
    ) and all(len(range(0, words, -(-words // tensor))) == tensor for words in heads)


def can_split(blocks: list[Any]) -> bool:
    """Whether any of them can be split, words aside."""
    return any(block.tensor_limits != (1,) for block in blocks if block.role != "head")


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
    elif random.random() < 0.1:
        fixed["encoder_tensor"] = random.choice([1, 2])
    if serve and random.random() < 0.5:
        fixed["token_limit"] = random.choice([1e-3, 3e-3, 1e-2])
    if not serve and random.random() < 0.2:
        word = random.choice(["none", "selective", "full"])
        stack = random.choice(report.blocks).name
        fixed["checkpointing"] = random.choice([word, {stack: word}])
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


def interleaved(seed: int) -> tuple[GraphReport, Cluster, Request] | None:
    """A random question about several stages to a device, which has about as much memory as the
    fastest of them need; None for a design of too few blocks."""
    random = Random(seed)
    report, groups = random_report(random), random.choice([2, 2, 3])
    if len(report.order) < 2 * groups:
        return None
    asked = Request(
        mode="train",
        batch=groups * random.choice([1, 2]),
        text=random.choice([16, 64]),
        images=1,
        tokens=16,
        pipeline=groups,
        schedule="interleaved",
    )
    plan = find(report, cluster(small_device(1e3), groups), asked).plan
    assert plan.predicted is not None
    most = max(one.total for one in plan.predicted.memory) - 0.75e9
    room = small_device(most * random.uniform(0.8, 1.02) / 1e9)
    return report, cluster(room, groups), asked


def short_of_memory(seed: int) -> tuple[GraphReport, Cluster, Request] | None:
    """A random question to one device that has room for everything recomputed, not for everything
    kept; None where that makes no difference."""
    random = Random(seed)
    report = random_report(random)
    asked = Request(mode="train", batch=1, text=2048, images=2, tokens=512)
    rooms: list[int] = []
    for word in ("none", "full"):
        plan = find(report, cluster(small_device(1e3), 1), replace(asked, checkpointing=word)).plan
        assert plan.predicted is not None
        rooms.append(max(one.total for one in plan.predicted.memory))
    most, least = (room - 0.75e9 for room in rooms)  # the context is small on a small device
    if most < 1.02 * least:
        return None
    room = 1.03 * least + (most - least) * random.random()
    return report, cluster(small_device(room / 1e9), 1), asked
