"""What can be wrong with a plan that was edited by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmc.analysis.report import GraphReport
from vlmc.components.contract import nearest_divisor
from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.nearest import listing, suggestion
from vlmc.partition.plan import ParallelPlan
from vlmc.partition.schedule.orders import refusal
from vlmc.runtime.parallel.plan_file import OPTIMISERS, TRAINED_IN, ZERO_STAGES

NAMED = 4
"""Blocks that a message names one by one."""


def problems(plan: ParallelPlan) -> Iterator[Problem]:
    """What a plan contradicts itself in. Needs no torch."""
    yield from _ranks(plan)
    yield from _batch(plan)
    yield from _stages(plan)
    yield from _twice(plan)
    if plan.mode == "train":
        yield from _executed(plan)


def _executed(plan: ParallelPlan) -> Iterator[Problem]:
    """What train.py does not run, by its own lists."""
    if plan.optimiser not in OPTIMISERS:
        yield _no_word("optimiser", plan.optimiser, OPTIMISERS)
    if plan.precision not in TRAINED_IN:
        yield _no_word("precision", plan.precision, TRAINED_IN)
    if plan.zero not in ZERO_STAGES:
        yield Problem(
            code="VLMC012",
            path=("zero",),
            message="`zero` cannot be 1: gradients are sharded wherever the optimiser's state is",
            expected=", ".join(map(str, ZERO_STAGES)),
            got=str(plan.zero),
            help="zero: 2",
        )
    if plan.sequence_parallel:
        yield Problem(
            code="VLMC012",
            path=("sequence_parallel",),
            message="activations between blocks stay whole on each rank of a tensor group",
            expected="false",
            got="true",
            help="sequence_parallel: false",
        )


def _no_word(key: str, word: str, words: Sequence[str]) -> Problem:
    return Problem(
        code="VLMC012",
        path=(key,),
        message=f"`{key}` cannot be {word[:60]!r} in training",
        expected=listing(word, words),
        got=word[:60],
        help=f"{key}: {suggestion(word, words) or words[0]}",
    )


def against(plan: ParallelPlan, fingerprint: str, report: GraphReport | None) -> Iterator[Problem]:
    """What a plan contradicts of the design that it is to run; without its report, whether it is
    for that design at all."""
    if plan.spec != fingerprint:
        yield Problem(
            code="VLMC160",
            path=("spec",),
            message="the plan was made for another design",
            expected=f"{fingerprint[:12]}..., the hash of this one's parts",
            got=f"{plan.spec[:12]}..., of {plan.design[:60]}",
            help="vlmc plan SPEC --output plan.yaml",
        )
        return
    if report is None:
        return
    yield from _tensor(plan, report)
    missing = list(_missing(plan, report))
    yield from missing or _order(plan, report)
    names = list(_counts(report))
    for name in plan.checkpointing:
        if name not in names:
            yield _unknown_block(("checkpointing", name), name, names, at_key=True)


def _ranks(plan: ParallelPlan) -> Iterator[Problem]:
    mesh, count = plan.mesh, plan.count
    if mesh.ranks != count:
        rest = mesh.pipeline * mesh.tensor
        help_ = f"data: {count // rest}" if count % rest == 0 else f"count: {mesh.ranks}"
        yield Problem(
            code="VLMC161",
            path=("mesh",),
            related=(("count",),),
            message=f"the mesh has {mesh.ranks} ranks for {count} devices",
            expected=f"pipeline x data x tensor = {count}",
            got=f"{mesh.pipeline} x {mesh.data} x {mesh.tensor} = {mesh.ranks}",
            help=help_,
        )
    if count > plan.per_node and count % plan.per_node:
        yield Problem(
            code="VLMC161",
            path=("per_node",),
            related=(("count",),),
            message=f"{count} devices do not fill nodes of {plan.per_node}",
            expected=f"a divisor of {count}",
            got=f"{count} / {plan.per_node} = {count // plan.per_node} remainder "
            f"{count % plan.per_node}",
            help=f"per_node: {nearest_divisor(count, plan.per_node)}",
        )


def _batch(plan: ParallelPlan) -> Iterator[Problem]:
    shared = plan.mesh.data * plan.micro_batch
    if plan.mode == "train" and plan.batch % shared:
        each = plan.batch // plan.mesh.data
        fits = plan.batch % plan.mesh.data == 0
        yield Problem(
            code="VLMC163",
            path=("micro_batch",),
            related=(("batch",),),
            message=f"micro-batches of {plan.micro_batch} do not divide the batch",
            expected=f"data x micro_batch that divides {plan.batch}",
            got=f"{plan.batch} / ({plan.mesh.data} x {plan.micro_batch}) = {plan.batch // shared} "
            f"remainder {plan.batch % shared}",
            help=f"micro_batch: {nearest_divisor(each, plan.micro_batch)}"
            if fits
            else f"batch: {shared * -(-plan.batch // shared)}",
        )
    elif plan.mode == "train":
        why = refusal(plan.schedule, plan.mesh.pipeline, plan.micro_batches, plan.chunks)
        if why is not None:
            yield Problem(
                code="VLMC163",
                path=("schedule",),
                related=(("micro_batch",),),
                message="the schedule cannot run so many micro-batches",
                expected="a schedule that fits the pipeline's groups and micro-batches",
                got=why,
                help="schedule: gpipe" if plan.chunks == 1 else "chunks: 1",
            )


def _stages(plan: ParallelPlan) -> Iterator[Problem]:
    groups = plan.mesh.pipeline
    wanted = groups * plan.chunks
    if len(plan.stages) != wanted:
        yield Problem(
            code="VLMC161",
            path=("stages",),
            message=f"{wanted} stages are needed",
            expected=f"pipeline x chunks = {groups} x {plan.chunks} = {wanted}",
            got=f"{len(plan.stages)}",
            help="chunks: 1" if len(plan.stages) == groups else f"pipeline: {len(plan.stages)}",
        )
        return
    for index, stage in enumerate(plan.stages):
        if stage.group != index % groups:
            yield Problem(
                code="VLMC161",
                path=("stages", index, "group"),
                message=f"stage {index} belongs to another group",
                expected=f"{index} mod {groups} = {index % groups}",
                got=str(stage.group),
                help=f"group: {index % groups}",
            )


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    first: int
    last: int


def _held(plan: ParallelPlan) -> dict[str, list[_Place]]:
    """By block, where it is held, by number."""
    found: dict[str, list[_Place]] = {}
    for index, stage in enumerate(plan.stages):
        for number, held in enumerate(stage.holds):
            path: Path = ("stages", index, "holds", number)
            found.setdefault(held.block, []).append(_Place(path, held.first, held.last))
    return {name: sorted(places, key=lambda p: (p.first, p.last)) for name, places in found.items()}


def _twice(plan: ParallelPlan) -> Iterator[Problem]:
    """Ranges that end before they begin, overlap, or leave a gap between them."""
    for name, places in _held(plan).items():
        following = 0
        for place in places:
            if place.last < place.first:
                yield _range(place, name, f"from {place.first} to {place.last}",
                             "a last block that is no earlier than the first",
                             f"last: {place.first}")  # fmt: skip
                continue
            if place.first < following:
                again = _numbers(place.first, min(place.last, following - 1))
                yield _range(place, name, f"{again} again", f"each block once, next {following}",
                             f"first: {following}")  # fmt: skip
            elif place.first > following:
                lost = _numbers(following, place.first - 1)
                yield _range(place, name, f"nothing holds {lost}", f"first: {following}",
                             f"first: {following}")  # fmt: skip
            following = max(following, place.last + 1)


def _range(place: _Place, name: str, got: str, expected: str, help_: str) -> Problem:
    return Problem(
        code="VLMC162",
        path=(*place.path, help_.partition(":")[0]),
        message=f"`{name[:60]}` is not held as it should be",
        expected=expected,
        got=got,
        help=help_,
    )


def _numbers(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first} to {last}"


def _counts(report: GraphReport) -> Counter[str]:
    """How many blocks of each name the chain has, in the order in which data meets them. Blocks of
    one stack may differ: the last one of an encoder whose output nothing reads."""
    return Counter(report.blocks[number].name for number in report.order)


def _missing(plan: ParallelPlan, report: GraphReport) -> Iterator[Problem]:
    """Blocks of the design that no stage holds, and blocks that it does not have."""
    counts = _counts(report)
    held = _held(plan)
    for name, places in held.items():
        if name not in counts:
            yield _unknown_block((*places[0].path, "block"), name, list(counts))
        elif (last := places[-1]).last >= counts[name]:
            yield _range(last, name, f"block {last.last}", f"at most {counts[name] - 1}",
                         f"last: {counts[name] - 1}")  # fmt: skip
        elif last.last < counts[name] - 1:
            lost = _numbers(last.last + 1, counts[name] - 1)
            yield _range(last, name, f"nothing holds {lost}", f"last: {counts[name] - 1}",
                         f"last: {counts[name] - 1}")  # fmt: skip
    lost = [name for name in counts if name not in held]
    if lost and held:
        shown = ", ".join(lost[:NAMED]) + (", ..." if len(lost) > NAMED else "")
        yield Problem(
            code="VLMC162",
            path=("stages",),
            message=f"no stage holds {shown}",
            expected=f"each of the design's {len(counts)} kinds of block",
            got=f"{len(held)} of them",
            help=f"add {{block: {lost[0]}, first: 0, last: {counts[lost[0]] - 1}}} to a stage",
            at_key=True,
        )


def _order(plan: ParallelPlan, report: GraphReport) -> Iterator[Problem]:
    """Stages hold consecutive stretches of the chain of blocks."""
    seen: Counter[str] = Counter()
    chain: list[tuple[str, int]] = []
    for number in report.order:
        name = report.blocks[number].name
        chain.append((name, seen[name]))
        seen[name] += 1
    place = {block: at for at, block in enumerate(chain)}
    latest = -1
    for index, stage in enumerate(plan.stages):
        at = [
            place[held.block, number]
            for held in stage.holds
            for number in range(held.first, held.last + 1)
            if (held.block, number) in place
        ]
        if at and min(at) < latest:
            name, number = chain[min(at)]
            yield Problem(
                code="VLMC162",
                path=("stages", index, "holds"),
                message=f"stage {index} holds what runs before stage {index - 1}",
                expected="stages in the order in which data meets their blocks",
                got=f"{name} {number}",
                help="move it to an earlier stage",
            )
            return
        latest = max([latest, *at])


def _tensor(plan: ParallelPlan, report: GraphReport) -> Iterator[Problem]:
    degree = plan.mesh.tensor
    for block in report.blocks:
        replicated = plan.placement == "replicated" and block.role in ("encoder", "adapter")
        limits = [limit for limit in block.tensor_limits if limit % degree]
        if replicated or not limits or block.tensor_limits == (1,):
            continue
        yield Problem(
            code="VLMC161",
            path=("mesh", "tensor"),
            message=f"{block.name} cannot be shared by {degree} devices",
            expected=f"a degree that divides {limits[0]}",
            got=f"{limits[0]} / {degree} = {limits[0] // degree} remainder {limits[0] % degree}",
            help=f"tensor: {nearest_divisor(limits[0], degree)}",
        )
        return


def _unknown_block(path: Path, name: str, valid: list[str], *, at_key: bool = False) -> Problem:
    near = suggestion(name, valid)
    return Problem(
        code="VLMC162",
        path=path,
        message=f"the design has no block `{name[:60]}`",
        expected=listing(name, valid),
        got=name[:60],
        help=f"block: {near}" if near else "name one of these",
        at_key=at_key,
    )
