"""The pipeline of a training plan, played by the simulator: what each stage takes, when each group
does what, and the picture of that."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.plan import ParallelPlan
from vlmc.partition.schedule.orders import Op, orders_of
from vlmc.partition.schedule.picture import timeline_svg
from vlmc.partition.schedule.simulation import Durations, Transfer, simulate
from vlmc.partition.schedule.timeline import Timeline
from vlmc.partition.setting import Setting
from vlmc.partition.space import keeping
from vlmc.planning.made import Made

MOST_PLAYED = 2**16
"""Forward passes of a step that are played one by one. Of more, whole rounds of micro-batches over
the groups are played: what fills and empties the pipeline is all there, and the rest repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A training plan's stages as the schedule runs them."""

    durations: Durations
    transfer: Transfer
    first_backward: int


def pipeline(made: Made) -> Pipeline:
    """What each stage of a training plan takes, by what `find` reckoned with."""
    plan, asked = made.plan, made.asked
    chain = Chain(Rooflines(made.report, asked.cluster, asked.request), setting(plan))
    ends = (0, *ends_of(plan))
    stages = list(pairwise(ends))

    def of(sums: list[float]) -> list[float]:
        return [sums[end] - sums[first] for first, end in stages]

    forward, backward, late = of(chain.forward), of(chain.backward), of(chain.late)
    split = plan.schedule == "zero_bubble"

    def durations(stage: int, op: Op, micro_batch: int) -> float:
        if op == "F":
            return forward[stage]
        if op == "B" or not split:
            return backward[stage]
        inputs = 0.0 if stage == 0 else backward[stage] - late[stage]
        return inputs if op == "I" else backward[stage] - inputs

    def transfer(one: int, two: int) -> float:
        return chain.send(ends[max(one, two)])

    reached = [stage for stage, seconds in enumerate(backward) if seconds > 0]
    return Pipeline(
        durations=durations,
        transfer=transfer,
        first_backward=reached[0] if reached else len(stages),
    )


def ends_of(plan: ParallelPlan) -> tuple[int, ...]:
    """Where along the chain of blocks its stages end."""
    return tuple(
        accumulate(sum(held.last - held.first + 1 for held in stage.holds) for stage in plan.stages)
    )


def setting(plan: ParallelPlan) -> Setting:
    """The point of the search's space that a plan stands for."""
    return Setting(
        pipeline=plan.mesh.pipeline,
        data=plan.mesh.data,
        tensor=plan.mesh.tensor,
        sequence_parallel=plan.sequence_parallel,
        zero=plan.zero,
        micro_batch=plan.micro_batch,
        micro_batches=plan.micro_batches,
        schedule=plan.schedule,
        chunks=plan.chunks,
        keeps=keeping(plan.checkpointing),
        placement=plan.placement,
        encoder_tensor=plan.encoder_tensor if plan.placement == "replicated" else None,
    )


def played(plan: ParallelPlan) -> int:
    """Micro-batches of a step that are played."""
    groups = plan.mesh.pipeline
    rounds = max(1, MOST_PLAYED // len(plan.stages) // groups)
    return plan.micro_batches if plan.micro_batches <= rounds * groups else rounds * groups


def timeline(made: Made) -> Timeline | None:
    """When each pipeline group does what in one step; None where there is no pipeline."""
    if made.plan.mode != "train" or made.plan.mesh.pipeline == 1:
        return None
    parts = pipeline(made)
    return simulate(
        orders_of(made.plan, played(made.plan)),
        parts.durations,
        parts.transfer,
        first_backward=parts.first_backward,
    )


def picture(made: Made) -> str | None:
    """The pipeline's timeline as SVG; None where there is no pipeline."""
    plan, times = made.plan, timeline(made)
    if times is None:
        return None
    shown = played(plan)
    first = f"{shown} of {plan.micro_batches}" if shown < plan.micro_batches else f"{shown}"
    title = (
        f"{plan.design}: {plan.schedule}, {plan.mesh.pipeline} groups, "
        f"{first} micro-batches of {plan.micro_batch}"
    )
    return timeline_svg(times, title=title)
