"""What can be wrong with a plan that was edited by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlmc.analysis.report import GraphReport
from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.nearest import listing, suggestion
from vlmc.partition.plan import Mesh, ParallelPlan
from vlmc.runtime.parallel.parts import Parts
from vlmc.runtime.parallel.plan_rules import broken_for, broken_rules
from vlmc.runtime.parallel.ruled import Broken, Degrees, Held, Ruled
from vlmc.runtime.parallel.stage_rules import blocks_named, broken_range, places_of
from vlmc.spec.document import Target

NAMED = 4
"""Blocks that a message names one by one."""


def problems(plan: ParallelPlan) -> Iterator[Problem]:
    """What a plan contradicts itself in, by the rules that train.py has, too. Needs no torch."""
    encoder = plan.encoder
    ruled = Ruled(
        trains=plan.mode == "train",
        count=plan.count,
        per_node=plan.per_node,
        trained=plan.trained,
        precision=plan.precision,
        optimiser=plan.optimiser,
        mesh=_degrees(plan.mesh),
        encoder=None if encoder is None else _degrees(encoder),
        placement=plan.placement,
        sequence_parallel=plan.sequence_parallel,
        zero=plan.zero,
        batch=plan.batch,
        micro_batch=plan.micro_batch,
        schedule=plan.schedule,
        chunks=plan.chunks,
        checkpointing=plan.checkpointing,
        stages=_stages(plan),
    )
    yield from map(_problem, broken_rules(ruled))


def _degrees(mesh: Mesh) -> Degrees:
    return Degrees(mesh.pipeline, mesh.data, mesh.tensor)


def _stages(plan: ParallelPlan) -> tuple[tuple[int, tuple[Held, ...]], ...]:
    return tuple(
        (stage.group, tuple(Held(one.block, one.first, one.last) for one in stage.holds))
        for stage in plan.stages
    )


def _problem(broken: Broken) -> Problem:
    return Problem(
        code=broken.code,
        path=broken.path,
        related=broken.related,
        message=broken.message,
        expected=broken.expected,
        got=broken.got,
        help=broken.help,
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
    missing = list(_missing(plan, report))
    yield from missing or _order(plan, report)
    names = list(_counts(report))
    for name in plan.checkpointing:
        if name not in names:
            yield _unknown_block(("checkpointing", name), name, names, at_key=True)


def for_parts(plan: ParallelPlan, parts: Parts) -> Iterator[Problem]:
    """What a plan contradicts of the design's parts, by train.py's own rules."""
    mesh = _degrees(plan.mesh)
    yield from map(
        _problem,
        broken_for(parts, mesh, plan.encoder_tensor, plan.trained, plan.text, plan.images),
    )


def checkpointed(target: Target, report: GraphReport) -> Iterator[Problem]:
    """Stacks that a target gives checkpointing for and the design does not have."""
    said = target.parallel.checkpointing
    stacks = list(dict.fromkeys(one.name for one in report.blocks if "*" in one.name))
    for name in said if isinstance(said, dict) else ():
        if name not in stacks:
            path = ("target", "parallel", "checkpointing", name)
            yield _unknown_block(path, name, stacks, at_key=True)


def _counts(report: GraphReport) -> Counter[str]:
    """How many blocks of each name the chain has, in the order in which data meets them. Blocks of
    one stack may differ: the last one of an encoder whose output nothing reads."""
    return Counter(report.blocks[number].name for number in report.order)


def _missing(plan: ParallelPlan, report: GraphReport) -> Iterator[Problem]:
    """Blocks of the design that no stage holds, and blocks that it does not have."""
    counts = _counts(report)
    held = places_of(_stages(plan))
    for name, places in held.items():
        if name not in counts:
            yield _unknown_block((*places[0].path, "block"), name, list(counts))
        elif (last := places[-1]).last >= counts[name]:
            yield _problem(broken_range(last, name, f"block {last.last}",
                                        f"at most {counts[name] - 1}",
                                        f"last: {counts[name] - 1}"))  # fmt: skip
        elif last.last < counts[name] - 1:
            lost = blocks_named(last.last + 1, counts[name] - 1)
            yield _problem(broken_range(last, name, f"nothing holds {lost}",
                                        f"last: {counts[name] - 1}",
                                        f"last: {counts[name] - 1}"))  # fmt: skip
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
