"""The search finds the best plan, proves it, and says why; where there is none, it says that."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise, product
from operator import ge, le
from random import Random
from typing import Any

import pytest
from every_plan import every_checkpointing, fastest, instance, interleaved, short_of_memory
from graph_reports import cluster, flamingo_80b, random_report, small_device

from vlmc.analysis.polynomial import ZERO, Polynomial
from vlmc.analysis.report import GraphReport
from vlmc.diagnostics.faults import UsageError
from vlmc.hardware.cluster import Cluster
from vlmc.hardware.device import device
from vlmc.ir.training import zero_stages
from vlmc.partition import several
from vlmc.partition.bounds import Bounds
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.keeping import Keeping
from vlmc.partition.leaf import Leaf, best_cuts
from vlmc.partition.leaf import fits as leaf_fits
from vlmc.partition.pace import pace
from vlmc.partition.part import parts
from vlmc.partition.plan import ParallelPlan
from vlmc.partition.request import Infeasible, Request
from vlmc.partition.room import needs_of_all
from vlmc.partition.schedule import order, simulate
from vlmc.partition.search import find
from vlmc.partition.setting import Setting
from vlmc.partition.solve import solve_batch, solve_budget, solve_count
from vlmc.partition.space import bases, divisors, schedules, zero_choices
from vlmc.partition.why import balance, fullest
from vlmc.planning.checks import problems
from vlmc.planning.played import ends_of, setting

INSTANCES = 1000
TRAIN = Request(mode="train", batch=256, text=2048, images=5, tokens=64)
SERVE = Request(mode="serve", batch=8, text=640, images=5, tokens=64)


def a100(count: int, **changes: Any) -> Cluster:
    return replace(cluster(device("a100-80gb"), count), **changes)


@pytest.mark.parametrize("first", range(0, INSTANCES, 50))
def test_the_gap_to_brute_force_is_zero(first: int) -> None:
    fitted = 0
    for seed in range(first, first + 50):
        report, devices, request, decode = instance(seed)
        expected = fastest(report, devices, request, decode)
        try:
            found = find(report, devices, request, decode=decode)
        except Infeasible:
            assert expected is None, seed
            continue
        assert found.plan.predicted is not None
        assert expected == pytest.approx(found.plan.predicted.step_seconds, rel=1e-9), seed
        assert found.proven
        # What is found is what train.py runs; random reports name no part that they train.
        named = found.plan.model_copy(update={"trained": ("language",)})
        assert not list(problems(named)), seed
        fitted += 1
    assert fitted >= 12


def test_the_gap_is_zero_where_memory_asks_for_checkpointing() -> None:
    unlike = 0
    for question in filter(None, map(short_of_memory, range(150))):
        plan = find(*question).plan
        assert plan.predicted is not None
        expected = fastest(*question, None)
        assert expected == pytest.approx(plan.predicted.step_seconds, rel=1e-9)
        unlike += len({plan.checkpointing.get(name, "none") for name in stacks(question[0])}) > 1
    assert unlike > 20


def test_the_gap_is_zero_where_stages_share_a_device() -> None:
    """With several stages to a device the large ones fit beside small ones alone."""
    fitted = unlike = 0
    for question in filter(None, map(interleaved, range(200))):
        expected = fastest(*question)
        try:
            found = find(*question)
        except Infeasible:
            assert expected is None
            continue
        assert found.plan.predicted is not None
        assert expected == pytest.approx(found.plan.predicted.step_seconds, rel=1e-9)
        assert found.proven
        fitted += 1
        unlike += not among_its_like(*question, found.plan)
    assert fitted > 30
    assert unlike > 10


def among_its_like(
    report: GraphReport, devices: Cluster, request: Request, plan: ParallelPlan
) -> bool:
    """Whether each stage would fit, were the others of its group as large."""
    chain = Chain(Rooflines(report, devices, request), setting(plan))
    ends = ends_of(plan)
    message = chain.largest(ends[:-1])
    return all(
        needs_of_all(chain, stage, first, end, message) <= chain.room
        for stage, (first, end) in enumerate(pairwise((0, *ends)))
    )


def test_a_bound_is_told_where_not_all_cuts_were_looked_at(monkeypatch: Any) -> None:
    monkeypatch.setattr(several, "TRIES", 0)
    monkeypatch.setattr(several, "EACH", 0)
    unproven = missing = 0
    for question in filter(None, map(interleaved, range(200))):
        expected = fastest(*question)
        try:
            found = find(*question)
        except Infeasible as caught:
            # No plan is called impossible that is there.
            told = str(caught)
            assert expected is None or "not all cuts" in told, told
            missing += expected is not None
            continue
        assert found.plan.predicted is not None
        assert expected is not None
        took = found.plan.predicted.step_seconds
        assert found.bound_seconds <= expected * (1 + 1e-9)
        assert expected <= took * (1 + 1e-9)
        assert found.plan.bound_seconds == found.bound_seconds
        unproven += not found.proven
    assert unproven > 5
    assert missing > 5


def stacks(report: GraphReport) -> set[str]:
    return {one.name for one in report.blocks if one.reached and "*" in one.name}


def test_bounds_are_never_above_what_they_bound() -> None:
    compared, unread = 0, 0
    for seed in range(40):
        report, devices, request, _ = instance(seed)
        if request.mode == "serve":
            continue
        unread += any(one.trained and not one.stepped for one in report.blocks)
        lines = Rooflines(report, devices, request)
        bounds = Bounds(lines)
        for base in bases(lines, across_nodes=False):
            ways = schedules(lines, base)
            for zero, keeps in product(
                zero_choices(lines, base), every_checkpointing(report, request)
            ):
                kept = replace(base, zero=zero, keeps=keeps)
                for schedule, chunks in ways:
                    setting = replace(kept, schedule=schedule, chunks=chunks)
                    leaf = best_cuts(Chain(lines, setting), float("inf"))
                    if leaf is None:
                        continue
                    costs = leaf.chain.parts
                    bound = bounds.setting(setting, costs)
                    assert bounds.base(base, ways) <= bound * (1 + 1e-9)
                    assert bound <= leaf.pace.seconds
                    assert bounds.states(base) <= fullest(leaf)
                    assert not bounds.too_many(base)
                    assert bounds.fits(kept, costs)
                    assert bounds.possible(setting, costs, leaf.pace.seconds)
                    compared += 1
    assert compared > 500
    assert unread > 5


def test_bounds_let_in_what_just_fits() -> None:
    """Blocks of a kind stand one behind the other, and devices have not a byte to spare."""
    compared = 0
    for seed in range(100):
        draw = Random(seed)
        report, devices, request, _ = instance(seed)
        if request.mode == "serve":
            continue
        order = [
            number
            for number, one in enumerate(report.blocks)
            for _ in range(draw.choice([1, 3, 6]) if "*" in one.name else 1)
        ]
        report = replace(report, order=tuple(order))
        # Of one micro-batch with little to save: then copies of weights leave as gradients come.
        zero = draw.choice([None, 1, 2, 2])
        request = replace(
            request, batch=devices.count, text=draw.choice([1, 16]), images=0, zero=zero
        )
        roomy = replace(devices, device=small_device(1e4))
        lines = Rooflines(report, roomy, request)
        for base in bases(lines, across_nodes=False):
            ways = [
                (zero, *way)
                for zero, way in product(zero_choices(lines, base), schedules(lines, base))
                if zero in zero_stages(way[0], base.pipeline)
            ]
            if not ways:
                continue
            zero, schedule, chunks = draw.choice(ways)
            keeps = draw.choice(every_checkpointing(report, request))
            setting = replace(base, zero=zero, keeps=keeps, schedule=schedule, chunks=chunks)
            chain = Chain(lines, setting)
            leaf = best_cuts(chain, float("inf"))
            if leaf is None:
                continue
            tight = small_device(least_room(leaf) / 1e9)
            bounds = Bounds(Rooflines(report, replace(devices, device=tight), request))
            assert bounds.states(base) <= tight.memory_bytes
            assert not bounds.too_many(base)
            assert bounds.fits(setting, chain.parts)
            assert bounds.possible(setting, chain.parts, leaf.pace.seconds * (1 + 1e-9))
            compared += 1
    assert compared > 100


def least_room(leaf: Leaf) -> float:
    """Bytes of a device with which its cuts fit."""
    low, high = 0.0, 1e13
    for _ in range(60):
        leaf.chain.room = int((low + high) / 2)
        low, high = (low, leaf.chain.room) if leaf_fits(leaf) else (leaf.chain.room, high)
    return high + 1


def test_inputs_that_no_device_holds_are_ruled_out_before_cutting() -> None:
    """Every device is given its replica's share of the batch, whatever the micro-batch."""
    report = replace(flamingo_80b(), inputs=Polynomial.symbol("batch") * 6_000_000)
    lines = Rooflines(report, a100(64), replace(TRAIN, batch=2**20))
    tried = list(bases(lines, across_nodes=False))
    assert len(tried) > 100
    assert min(map(Bounds(lines).states, tried)) > lines.cluster.device.memory_bytes
    assert all(map(Bounds(lines).too_many, tried))
    with pytest.raises(Infeasible, match=r"inputs of all micro-batches.*smaller batch"):
        find(report, a100(64), replace(TRAIN, batch=2**20))


@pytest.mark.parametrize("batch", [2**20, 2**31 - 2])
def test_sizes_of_micro_batches_are_bounded_by_what_they_save(batch: int) -> None:
    """A batch may have a thousand divisors; few of them are sizes that memory allows."""
    lines = Rooflines(flamingo_80b(), a100(64), replace(TRAIN, batch=batch))
    bounds, sizes = Bounds(lines), set[int]()
    for base in bases(lines, across_nodes=False):
        if not bounds.too_many(base) and bounds.states(base) <= 80e9:
            sizes.add(base.micro_batch)
    assert 1 in sizes
    assert max(sizes) < 2000 < max(divisors(batch)) / 100
    assert max(lines._read) < 10_000  # nothing is worked out for larger ones


def test_every_way_to_keep_is_reached_once() -> None:
    reached = 0
    for seed in range(60):
        report, devices, request, _ = instance(seed)
        if request.mode == "serve":
            continue
        lines = Rooflines(report, devices, request)
        base = next(iter(bases(lines, across_nodes=False)), None)
        if base is None:
            continue
        keeping = Keeping(lines, base)
        ways = [(keeping.fastest, 0)]
        for way, free in ways:
            ways += keeping.following(way, free)
        named = [keeping.named(way) for way, _ in ways]
        assert len(set(named)) == len(named)
        costs = [keeping.parts(way) for way, _ in ways]
        for one in every_checkpointing(report, request):
            wanted = parts(lines, replace(base, keeps=one))
            assert any(
                all(
                    a.saved == b.saved and a.backward <= b.backward
                    for a, b in zip(found, wanted, strict=True)
                )
                for found in costs
            )
        for way, free in ways:
            least = [part.saved for part in keeping.least(way, free)]
            for other, _ in ways:
                if other[:free] == way[:free] and all(map(ge, other, way)):
                    saved = [part.saved for part in keeping.parts(other)]
                    assert all(map(le, least, saved))
        reached += len(ways)
    assert reached > 200


def test_kinds_of_blocks_keep_what_suits_each() -> None:
    """Faster than with one word for all kinds."""
    asked = replace(TRAIN, batch=1024, text=2304, data=32, tensor=8, zero=3)
    devices = a100(256)
    plan = find(flamingo_80b(), devices, asked).plan
    assert plan.predicted is not None
    kept = {plan.checkpointing.get(one, "none") for one in ("fusion.gated.*", "language.layers.*")}
    assert len(kept) == 2
    for word in ("none", "selective", "full"):
        try:
            same = find(flamingo_80b(), devices, replace(asked, checkpointing=word)).plan
        except Infeasible:
            continue
        assert same.predicted is not None
        assert same.predicted.step_seconds > plan.predicted.step_seconds * 1.001
    for word in ("none", "full"):
        given = replace(asked, checkpointing={"fusion.gated.*": word})
        assert (
            find(flamingo_80b(), devices, given).plan.checkpointing.get("fusion.gated.*", "none")
            == word
        )


def test_schedules_share_no_sums_that_differ() -> None:
    """A chain that is made for one schedule and turned to another is what it would be if it had
    been made for that."""
    compared = 0
    for seed in range(60):
        report, devices, request, _ = instance(seed)
        if request.mode == "serve":
            continue
        lines = Rooflines(report, devices, request)
        for base in bases(lines, across_nodes=False):
            for zero, (schedule, chunks) in product(
                zero_choices(lines, base), schedules(lines, base)
            ):
                setting = replace(base, zero=zero, schedule=schedule, chunks=chunks)
                turned = Chain(lines, replace(setting, schedule="gpipe", chunks=1))
                found, made = vars(turned.scheduled(setting)), vars(Chain(lines, setting))
                # Of what tokens take only the times are read, which schedules share.
                others = {"token_parts": (), "peaks": vars(found.pop("peaks"))}
                assert {**found, **others} == {**made, **others, "peaks": vars(made["peaks"])}
                compared += 1
    assert compared > 200


@pytest.fixture(scope="module")
def leaves() -> dict[str, Leaf]:
    """Flamingo-80B on 64 devices, eight pipeline groups, by schedule."""
    lines = Rooflines(flamingo_80b(), a100(64), TRAIN)
    common: dict[str, Any] = {"pipeline": 8, "data": 4, "tensor": 2, "sequence_parallel": True}
    found: dict[str, Leaf] = {}
    for schedule, chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("zero_bubble", 1)):
        setting = Setting(
            **common,
            schedule=schedule,
            chunks=chunks,
            micro_batches=16,
            micro_batch=4,
            zero=3,
            keeps=(("language.layers.*", "full"), ("fusion.gated.*", "full")),
        )
        leaf = best_cuts(Chain(lines, setting), float("inf"))
        assert leaf is not None
        found[schedule] = leaf
    return found


def simulated(leaf: Leaf) -> float:
    """Seconds by the simulator, the tail of the step and messages left out."""
    chain, setting = leaf.chain, leaf.chain.setting
    stages = list(pairwise((0, *leaf.ends)))

    def duration(stage: int, op: str, micro_batch: int) -> float:
        del micro_batch
        first, end = stages[stage]
        late = chain.late[end] - chain.late[first]
        back = chain.backward[end] - chain.backward[first]
        forward = chain.forward[end] - chain.forward[first]
        return {"F": forward, "B": back, "I": back - late, "W": late}[op]

    actions = order(setting.schedule, setting.pipeline, setting.micro_batches, setting.chunks)
    return simulate(actions, duration, lambda one, two: 0.0).seconds


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_the_closed_form_agrees_with_the_simulation(schedule: str, leaves: dict[str, Leaf]) -> None:
    leaf = leaves[schedule]
    chain = leaf.chain
    chain.tail = [0.0] * len(chain.tail)
    chain.work = [
        chain.setting.micro_batches * (one + two)
        for one, two in zip(chain.forward, chain.backward, strict=True)
    ]
    chain.lines.cluster = replace(chain.lines.cluster, network_gbps=1e12, latency=0.0)
    closed = pace(chain, leaf.ends).seconds
    assert simulated(leaf) == pytest.approx(closed, rel=0.05)
    if schedule in ("gpipe", "1f1b"):
        assert simulated(leaf) <= closed * (1 + 1e-9)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero_bubble"])
def test_the_closed_form_is_exact_for_equal_stages(schedule: Any) -> None:
    report = flamingo_80b()
    layer = report.order.index(7)
    block = report.blocks[report.order[layer]]
    operators = tuple(
        replace(one, phase=phase)
        for phase in ("forward", "backward_input", "backward_weight")
        for one in block.operators
        if one.phase == "forward"
    )
    block = replace(block, trained=True, operators=operators, parameters=10**6)
    twin = replace(report, blocks=(block,), order=(0,) * 16)
    fast = a100(4, node_gbps=1e15, latency=0.0)
    request = replace(TRAIN, batch=16, optimiser="sgd")
    lines = Rooflines(twin, fast, request)
    setting = Setting(
        pipeline=4,
        micro_batch=2,
        micro_batches=8,
        schedule=schedule,
        chunks=2 if schedule == "interleaved" else 1,
    )
    leaf = best_cuts(Chain(lines, setting), float("inf"))
    assert leaf is not None
    tail = leaf.chain.tail[-1] / 4
    assert simulated(leaf) == pytest.approx(leaf.pace.seconds - tail, rel=1e-6)


def test_no_cuts_balance_stages_better(leaves: dict[str, Leaf]) -> None:
    """Eight groups cannot share 80 layers and 12 gated blocks equally."""
    chain, stages = leaves["1f1b"].chain, leaves["1f1b"].chain.setting.pipeline
    work = chain.work
    lightest = work[1:]  # of the heaviest stage, by the end of the last one
    for _ in range(stages - 1):
        lightest = [
            min(max(before, work[end] - work[at]) for at, before in enumerate(lightest[:end], 1))
            for end in range(1, len(work))
        ]
    assert balance(leaves["1f1b"]) <= max(1.03, 1.001 * lightest[-1] * stages / work[-1])
    asked = replace(TRAIN, pipeline=4, schedule="1f1b")
    plan = find(flamingo_80b(), a100(64), asked).plan
    chain = Chain(Rooflines(flamingo_80b(), a100(64), asked), setting(plan))
    assert balance(Leaf(chain, ends_of(plan), pace(chain, ends_of(plan)))) <= 1.03


def test_cuts_carry_features_until_the_last_block_that_looks(leaves: dict[str, Leaf]) -> None:
    chain = leaves["1f1b"].chain
    report = chain.lines.report
    roles = [report.blocks[block].role for block in report.order]
    last = max(place for place, role in enumerate(roles) if role == "fusion")
    for end in range(1, len(roles)):
        beside = chain.carried(end) - chain.outputs[end - 1]
        looked = roles.index("fusion") <= end <= last
        assert beside == (chain.outputs[chain.encoder - 1] if looked else 0), end
        fed = any(report.blocks[block].reached for block in report.order[:end])
        assert chain.returned(end) == (chain.carried(end) if fed else 0), end


def test_a_plan_holds_every_block_once() -> None:
    plan = find(flamingo_80b(), a100(64), replace(TRAIN, pipeline=8)).plan
    held = [
        (one.block, number)
        for stage in plan.stages
        for one in stage.holds
        for number in range(one.first, one.last + 1)
    ]
    report = flamingo_80b()
    assert len(held) == len(set(held)) == len(report.order)
    assert [name for name, _ in held] == [report.blocks[block].name for block in report.order]
    assert plan.mesh.ranks == 64
    assert plan.micro_batches * plan.micro_batch * plan.mesh.data == 256


def test_parts_of_the_time_add_up() -> None:
    plan = find(flamingo_80b(), a100(64), replace(TRAIN, pipeline=8, tensor=2)).plan
    known = plan.predicted
    assert known is not None
    parts = known.compute_seconds + sum(one.seconds for one in known.collectives)
    assert parts + known.bubble_seconds == pytest.approx(known.step_seconds)
    assert known.mfu is not None
    assert 0.2 < known.mfu < 0.9
    assert all(one.total <= 80e9 for one in known.memory)


@pytest.mark.parametrize("fixed", [{"pipeline": 4, "tensor": 2}, {"pipeline": 1, "tensor": 4}])
@pytest.mark.parametrize("generate", [0, 1, 128])
def test_parts_of_the_time_of_answers_add_up(fixed: Any, generate: int) -> None:
    asked = replace(SERVE, generate=generate, **fixed)
    plan = find(flamingo_80b("prefill"), a100(8), asked, decode=flamingo_80b("decode")).plan
    known = plan.predicted
    assert known is not None
    assert known.first_token_seconds is not None
    tokens = [one for one in known.collectives if "of tokens" in one.purpose]
    prompts = [one for one in known.collectives if one not in tokens]
    parts = known.compute_seconds + sum(one.seconds for one in prompts)
    assert parts + known.bubble_seconds == pytest.approx(known.first_token_seconds)
    again = (known.token_compute_seconds or 0) + sum(one.seconds for one in tokens)
    again += known.token_bubble_seconds or 0
    assert known.first_token_seconds + again == pytest.approx(known.step_seconds)
    # The first token is there when the prompt is read.
    assert again == pytest.approx(max(0, generate - 1) * (known.token_seconds or 0))
    if plan.mesh.pipeline == 1:
        assert known.bubble_seconds + (known.token_bubble_seconds or 0) < 1e-9
    kinds = list(dict.fromkeys(one.kind for one in prompts))
    if plan.mesh.pipeline == 1:
        assert kinds == ["all_reduce", "all_gather"]
    else:
        assert {"all_reduce", "send"} <= set(kinds) <= {"all_reduce", "all_gather", "send"}
    again = list(dict.fromkeys(one.kind for one in tokens))
    assert set(again) <= set(kinds)
    if plan.mesh.pipeline == 1:
        assert again == (kinds if generate > 1 else [])


def test_tokens_of_answers_are_summed_up_in_each_split_block() -> None:
    asked = replace(SERVE, tensor=8)
    known = find(
        flamingo_80b("prefill"), a100(8), asked, decode=flamingo_80b("decode")
    ).plan.predicted
    assert known is not None
    moved = {one.kind: one.bytes for one in known.collectives if "of tokens" in one.purpose}
    each = 8192 * 2 * SERVE.batch * (SERVE.generate - 1)
    assert moved["all_reduce"] == 2 * (80 + 12) * each  # of layers and gated blocks
    assert moved["all_gather"] == pytest.approx(each * 32000 / 8192, rel=0.01)  # logits


def test_a_tensor_group_stays_within_a_node() -> None:
    plan = find(flamingo_80b(), a100(8, per_node=2), replace(TRAIN, batch=16)).plan
    assert plan.mesh.tensor <= 2


@pytest.mark.parametrize("placement", ["stage_0", "own_group", "replicated", "spread"])
def test_the_encoder_lies_where_it_is_asked_for(placement: Any) -> None:
    asked = replace(TRAIN, pipeline=4, tensor=2, schedule="1f1b", placement=placement)
    plan = find(flamingo_80b(), a100(64), asked).plan
    first = [one.block for one in plan.stages[0].holds]
    if placement == "own_group":
        assert all(name.startswith(("encoder", "adapter")) for name in first)
    elif placement != "spread":
        assert any(name.startswith("language") for name in first)
    if placement == "replicated":
        assert plan.encoder is not None
        assert plan.encoder.tensor == 1


def test_too_little_memory_is_told_with_its_arithmetic() -> None:
    with pytest.raises(Infeasible) as caught:
        find(flamingo_80b(), a100(2), replace(TRAIN, batch=8))
    assert "the fullest device needs at least" in caught.value.constraint
    assert "weights" in caught.value.constraint
    assert "has 80.00 GB" in caught.value.constraint
    assert caught.value.advice


@pytest.mark.parametrize(
    ("count", "fixed", "named"),
    [
        (6, {"tensor": 3}, "tensor 3"),
        (8, {"batch": 4, "data": 8}, "data 8: data must divide the batch of 4"),
        (8, {"batch": 12, "data": 8}, "data 8: data must divide the batch of 12"),
        (8, {"micro_batch": 7}, "micro_batch 7"),
    ],
)
def test_degrees_that_cannot_be_are_told(count: int, fixed: dict[str, Any], named: str) -> None:
    with pytest.raises(Infeasible, match=f"cannot be divided with {named}"):
        find(flamingo_80b(), a100(count), replace(TRAIN, **fixed))


@pytest.mark.parametrize(
    ("fixed", "told"),
    [
        ({"zero": 3, "data": 1}, r"zero 3 .* needs data > 1"),
        (
            {"batch": 1, "schedule": "1f1b", "pipeline": 2},
            r"1f1b over 2 ranks needs as many micro-batches, not 1 \(at pipeline 2 x data 1",
        ),
        (
            {"batch": 5, "micro_batch": 1, "schedule": "interleaved", "pipeline": 2},
            "interleaved over 2 ranks sends 5 micro-batches in 2 rounds",
        ),
        (
            {"batch": 3, "micro_batch": 1, "schedule": "interleaved", "pipeline": 2},
            "interleaved is planned in whole rounds, and 2 ranks do not divide 3 micro-batches",
        ),
        (
            {"batch": 1, "schedule": "zero_bubble", "pipeline": 2},
            "zero_bubble over 2 ranks is planned with as many micro-batches, not 1",
        ),
        ({"chunks": 2, "pipeline": 1}, "2 chunks a group need a pipeline"),
        ({"chunks": 500, "pipeline": 2}, "2 groups of 500 chunks need as many blocks"),
    ],
)
def test_fixed_choices_that_cannot_be_are_told_by_what_binds(
    fixed: dict[str, Any], told: str
) -> None:
    with pytest.raises(Infeasible, match=told) as caught:
        find(flamingo_80b(), a100(2), replace(TRAIN, **fixed))
    assert "cannot be divided" not in caught.value.constraint


@pytest.mark.parametrize(
    ("schedule", "zero", "needs", "most"),
    [
        ("zero_bubble", 2, "gradients", 1),
        ("zero_bubble", 3, "weights", 1),
        ("interleaved", 3, "weights", 2),
    ],
)
def test_a_zero_stage_that_no_pipeline_of_a_schedule_has_is_told(
    schedule: Any, zero: int, needs: str, most: int
) -> None:
    """Where the other degrees leave no device but to a pipeline that is not asked for."""
    asked = replace(TRAIN, batch=8, data=2, tensor=1, zero=zero, schedule=schedule)
    with pytest.raises(Infeasible) as caught:
        find(flamingo_80b(), a100(4), asked)
    assert caught.value.constraint == (
        f"`zero` cannot be {zero} with {schedule}, which needs the {needs} of whole stages "
        "(at pipeline 2 x data 2 x tensor 1)"
    )
    assert caught.value.advice == f"zero {most}, or another schedule, would help"


def test_too_slow_is_told_with_what_is_possible() -> None:
    asked = replace(SERVE, token_limit=1e-4)
    with pytest.raises(Infeasible, match=r"each further token within 0.1 ms.*takes"):
        find(flamingo_80b("prefill"), a100(8), asked, decode=flamingo_80b("decode"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": "magic"}, "optimiser must be one of adamw"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"token_limit": 0.0}, "token_limit must be above 0"),
    ],
)
def test_requests_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find(flamingo_80b(), a100(8), replace(TRAIN, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_gbps": 0.0}, "need a link within a node"),
        ({"per_node": 4, "network_gbps": 0.0}, "need a network"),
        ({"per_node": 3}, "do not fill nodes of 3"),
        ({"price": 0.0}, "price must be above 0"),
    ],
)
def test_clusters_that_cannot_be_meant(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find(flamingo_80b(), a100(8, **changes), TRAIN)


def test_the_fewest_devices() -> None:
    solved = solve_count(flamingo_80b("prefill"), a100(1), SERVE, decode=flamingo_80b("decode"))
    assert (solved.value, solved.refused) == (3, 2)
    assert "needs at least" in solved.reason


@pytest.mark.parametrize("what", ["images", "text"])
def test_the_largest_budget(what: Any) -> None:
    report = random_report(Random(3))
    devices = cluster(small_device(0.2), 2)
    request = Request(mode="train", batch=2, text=64, images=1, tokens=16)
    solved = solve_budget(report, devices, request, what)
    assert solved.refused is not None
    assert "needs at least" in solved.reason
    one_more = replace(request, **{what: solved.refused})
    assert fastest(report, devices, replace(request, **{what: solved.value})) is not None
    assert fastest(report, devices, one_more) is None


def test_the_largest_batch_within_a_latency() -> None:
    asked = replace(SERVE, token_limit=0.2)
    prompts, tokens = flamingo_80b("prefill"), flamingo_80b("decode")
    solved = solve_batch(prompts, a100(8), asked, decode=tokens)
    known = solved.found.plan.predicted
    assert known is not None
    assert known.token_seconds is not None
    assert known.token_seconds <= 0.2
    assert solved.refused == solved.value + 8
    with pytest.raises(Infeasible):
        find(prompts, a100(8), replace(asked, batch=solved.refused), decode=tokens)


def test_few_micro_batches_take_gpipe() -> None:
    asked = replace(TRAIN, batch=8, pipeline=16, data=4, micro_batch=1)
    plan = find(flamingo_80b(), a100(64), asked).plan
    assert (plan.schedule, plan.micro_batches) == ("gpipe", 2)


def test_a_group_that_lies_on_two_nodes_is_as_fast_as_the_network() -> None:
    assert a100(24).gbps(6) == a100(24).gbps(16) == a100(24).network_gbps
    assert a100(24).gbps(4) == a100(24).gbps(8) == a100(6).gbps(6) == a100(6).node_gbps


def test_divisors_of_large_numbers_are_found_by_their_primes() -> None:
    assert len(divisors(10**15)) == 16**2
    for number in range(1, 200):
        assert list(divisors(number)) == [one for one in range(1, number + 1) if not number % one]


def test_an_answer_without_words_takes_no_longer_than_reading() -> None:
    asked = replace(SERVE, generate=0, token_limit=1e-9)
    known = find(flamingo_80b("prefill"), a100(8, price=1.0), asked).plan.predicted
    assert known is not None
    assert known.step_seconds == known.first_token_seconds
    assert known.token_seconds is known.cost_per_million_tokens is None


def largest(asked: Request, report: GraphReport, decode: GraphReport | None) -> tuple[int, Any]:
    plan = find(report, a100(8), asked, decode=decode).plan
    assert plan.predicted is not None
    assert plan.predicted.largest_batch is not None
    fixed = {"pipeline": plan.mesh.pipeline, "data": plan.mesh.data, "tensor": plan.mesh.tensor}
    return plan.predicted.largest_batch, fixed


def test_the_largest_batch_is_one_that_does() -> None:
    """Within the limit of latency; of a design without a cache, within memory."""
    prompts, tokens = flamingo_80b("prefill"), flamingo_80b("decode")
    free, _ = largest(SERVE, prompts, tokens)
    asked = replace(SERVE, token_limit=0.2, micro_batch=1)
    most, fixed = largest(asked, prompts, tokens)
    assert SERVE.batch <= most < free
    find(prompts, a100(8), replace(asked, batch=most, **fixed), decode=tokens)

    bare = replace(prompts, blocks=tuple(replace(one, cache=ZERO) for one in prompts.blocks))
    asked = replace(SERVE, generate=0)
    most, fixed = largest(asked, bare, None)
    assert most > 8 * SERVE.batch
    whole = replace(asked, batch=most, micro_batch=most // fixed["data"], **fixed)
    find(bare, a100(8), whole)
    more = replace(whole, batch=most + fixed["data"], micro_batch=most // fixed["data"] + 1)
    with pytest.raises(Infeasible, match="Memory"):
        find(bare, a100(8), more)


def test_degrees_that_are_fixed_are_kept_while_auto_is_solved() -> None:
    prompts, tokens = flamingo_80b("prefill"), flamingo_80b("decode")
    solved = solve_count(prompts, a100(1), replace(SERVE, data=2), decode=tokens)
    assert solved.found.plan.mesh.data == 2
    assert solved.value % 2 == 0
    asked = replace(SERVE, token_limit=0.2, data=2, micro_batch=3)
    assert solve_batch(prompts, a100(8), asked, decode=tokens).value % 6 == 0


@pytest.mark.parametrize(
    ("zero", "frozen", "weights", "gradients", "optimiser"),
    [
        (0, 2, 4, 4, 8),
        (1, 2, 4 / 2 + 2, 4, 8 / 2),
        (2, 2, 4 / 2 + 2, 4 / 2, 8 / 2),
        (3, 2 / 2, 4 / 2, 4 / 2, 8 / 2),
    ],
)
def test_states_by_what_is_sharded(
    zero: Any, frozen: float, weights: float, gradients: float, optimiser: float
) -> None:
    """Bytes for each parameter over two replicas, as FSDP2 keeps them: masters in fp32 and copies
    in bf16 at ZeRO 1 and 2 (else a copy lives while its block is at work, among the buffers),
    frozen weights whole but at ZeRO 3 (Rajbhandari et al., 2020)."""
    random = Random(7)
    report = next(r for r in iter(lambda: random_report(random), None) if mixed(r))
    asked = Request(mode="train", batch=8, text=8, data=2, zero=zero, micro_batch=1)
    exact = small_device(1000.0).model_copy(update={"cuda": False})  # nothing is rounded up
    plan = find(report, cluster(exact, 2), asked).plan
    assert plan.predicted is not None
    (memory,) = plan.predicted.memory
    blocks = [report.blocks[number] for number in report.order]
    trained = sum(one.parameters for one in blocks if one.trained)
    held = frozen * (sum(one.parameters for one in blocks) - trained) + weights * trained
    assert memory.weights == pytest.approx(held, rel=1e-6)
    assert memory.gradients == pytest.approx(gradients * trained, rel=1e-6)
    assert memory.optimiser == pytest.approx(optimiser * trained, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "zero"), [("interleaved", 2), ("zero_bubble", 1), ("gpipe", 3), ("1f1b", 3)]
)
def test_what_needs_the_least_is_a_plan_that_runs(schedule: Any, zero: int) -> None:
    """The arithmetic of what is too large is that of a combination that could be asked for."""
    asked = replace(TRAIN, batch=64, pipeline=4, data=2, tensor=2, schedule=schedule)
    with pytest.raises(Infeasible, match=f"{schedule}.*ZeRO {zero}") as caught:
        find(flamingo_80b(), replace(a100(16), device=small_device(4.0)), asked)
    assert "the fullest device needs at least" in caught.value.constraint


def test_the_least_memory_of_interleaved_stages_is_what_they_are_planned_with() -> None:
    fixed: dict[str, Any] = {"pipeline": 4, "data": 2, "tensor": 2, "micro_batch": 1}
    asked = replace(TRAIN, batch=64, schedule="interleaved", chunks=4, **fixed)

    def told(gigabytes: float) -> float:
        devices = replace(a100(16), device=small_device(gigabytes))
        with pytest.raises(Infeasible, match="the fullest device needs at least") as caught:
            find(flamingo_80b(), devices, asked)
        found = re.search(r"needs at least ([0-9.]+) GB", caught.value.constraint)
        assert found is not None
        return float(found[1])

    least = told(8.0)
    assert told(least * 0.99) == pytest.approx(least, rel=0.002)
    find(flamingo_80b(), replace(a100(16), device=small_device(least * 1.005)), asked)


def test_gradients_are_reduced_once_a_step_at_zero_1() -> None:
    """Replicas on other nodes: with four micro-batches, ZeRO 2 scatters four times as much."""
    report = flamingo_80b()
    fixed: dict[str, Any] = {"tensor": 8, "pipeline": 1, "micro_batch": 1, "placement": "stage_0"}
    moved: dict[int, dict[str, int]] = {}
    for zero in (1, 2):
        asked = replace(TRAIN, batch=64, zero=zero, **fixed)
        known = find(report, replace(a100(128), device=device("h200")), asked).plan.predicted
        assert known is not None
        moved[zero] = {one.kind: one.bytes for one in known.collectives}
    assert moved[2]["all_gather"] == moved[1]["all_gather"]
    assert moved[2]["reduce_scatter"] == 4 * moved[1]["reduce_scatter"]


def mixed(report: GraphReport) -> bool:
    """Whether a report has frozen blocks and such as get gradients, all of them in stacks."""
    kinds = {block.trained for block in report.blocks}
    if any(block.trained and not block.stepped for block in report.blocks):
        return False
    return kinds == {True, False} and all("*" in block.name for block in report.blocks)
