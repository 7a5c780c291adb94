"""What a plan is expected to take that was edited by hand: by what the search reckons with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vlmc.analysis.report import GraphReport
from vlmc.diagnostics import Problem
from vlmc.diagnostics.nearest import listing, suggestion
from vlmc.hardware import device, names
from vlmc.hardware.cluster import Cluster
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.leaf import Leaf
from vlmc.partition.pace import pace
from vlmc.partition.plan import Memory, ParallelPlan, Predicted
from vlmc.partition.request import Request, check
from vlmc.partition.writing import write
from vlmc.planning.asked import Asked
from vlmc.planning.played import ends_of, setting


def unknown_device(plan: ParallelPlan, asked: Asked) -> Iterator[Problem]:
    """Where a plan is for a device that is neither the target's nor in the list."""
    valid = sorted({asked.cluster.device.name, *names()})
    if plan.hardware not in valid:
        near = suggestion(plan.hardware, valid)
        yield Problem(
            code="VLMC150",
            path=("hardware",),
            message=f"unknown device `{plan.hardware[:60]}`",
            expected=listing(plan.hardware, valid),
            got=plan.hardware[:60],
            help=f"hardware: {near or asked.cluster.device.name}",
        )


def meant(plan: ParallelPlan, asked: Asked) -> Asked:
    """What is asked, with the plan's own work and devices in place of the spec's. The plan's device
    must be known."""
    request = Request(
        mode=plan.mode,
        batch=plan.batch,
        text=plan.text,
        images=plan.images,
        generate=asked.request.generate,
        precision=plan.precision,
        optimiser=plan.optimiser,
        spec=plan.spec,
    )
    trained = plan.trained if plan.mode == "train" else ()
    return replace(asked, cluster=_cluster(plan, asked.cluster), request=request, trained=trained)


def _cluster(plan: ParallelPlan, target: Cluster) -> Cluster:
    here = replace(target, count=plan.count, per_node=plan.per_node)
    if plan.hardware == target.device.name:
        return here
    card = device(plan.hardware)
    network = card.network_gbps or target.network_gbps
    return replace(here, device=card, node_gbps=(card.link_gbps or 0) / 2, network_gbps=network)


def weigh(
    plan: ParallelPlan, asked: Asked, report: GraphReport, decode: GraphReport | None
) -> Predicted:
    """Memory and time of a sound plan, of which `asked` is `meant`. Raises UsageError where its
    devices are not joined, or do not compute in its number format."""
    request, cluster = replace(asked.request, tokens=report.tokens), asked.cluster
    check(request, cluster)
    prompt = max(1, request.text - request.generate) if request.mode == "serve" else None
    lines = Rooflines(report, cluster, request, prompt)
    tokens = Rooflines(decode, cluster, request) if decode else None
    chain = Chain(lines, setting(plan), tokens)
    ends = ends_of(plan)
    found = write(Leaf(chain, ends, pace(chain, ends)), 0.0).predicted
    assert found is not None
    return found


def too_heavy(plan: ParallelPlan, found: Predicted, cluster: Cluster) -> Iterator[Problem]:
    """Where a group's devices would hold more than they can."""
    room = cluster.device.memory_bytes
    group, memory = fullest(found)
    if memory.total > room:
        kinds = ((name, getattr(memory, name)) for name in type(memory).model_fields)
        parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in kinds if size >= 5e6)
        yield Problem(
            code="VLMC157",
            path=("hardware",),
            related=(("micro_batch",), ("stages", group)),
            message=f"the plan does not fit {plan.count} x {plan.hardware}",
            expected=f"at most {room / 1e9:.2f} GB on a device",
            got=f"group {group}: {memory.total / 1e9:.2f} GB ({parts})",
            help="a smaller micro_batch, checkpointing, a higher zero, or fewer blocks there",
        )


def fullest(found: Predicted) -> tuple[int, Memory]:
    """The pipeline group that holds most, and what a device of it holds."""
    return max(enumerate(found.memory), key=lambda one: one[1].total)
