"""Rules about several devices: what joins them, and whether there is work for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.hardware import Device
from vlmc.resolver.flow import Flow
from vlmc.resolver.rules.fit import known_device
from vlmc.spec.document import Auto, Target


@dataclass(frozen=True, slots=True)
class _Nodes:
    target: Target
    card: Device
    count: int
    per_node: int


def _nodes(flow: Flow) -> _Nodes | None:
    """The target's devices; None where they, or their number, are unknown."""
    card, target = known_device(flow), flow.target
    if card is None or target is None or target.count == "auto":
        return None
    return _Nodes(target, card, target.count, target.per_node or card.per_node)


def devices_are_linked(flow: Flow) -> Iterator[Problem]:
    """Something joins the devices of a node, and something the nodes."""
    found = _nodes(flow)
    if found is None:
        return
    target, card, per_node = found.target, found.card, found.per_node
    several = min(found.count, per_node)
    if several > 1 and card.link_gbps is None:
        yield Problem(
            code="VLMC153",
            path=("target", "per_node"),
            related=(("target", "count"),),
            message=f"nothing joins the {several} devices of a node",
            expected="`link_gbps` in the device's file, or one device to a node",
            got=f"{card.name}, which has no link",
            help="per_node: 1",
        )
    if found.count > per_node and target.network_gbps is None and card.network_gbps is None:
        yield Problem(
            code="VLMC153",
            path=("target", "count"),
            related=(("target", "per_node"),),
            message=f"nothing joins the nodes of {found.count} x {card.name}",
            expected="`network_gbps`, or devices of one node",
            got=f"{found.count} devices, {per_node} to a node, and no network",
            help=f"count: {per_node}",
        )


def nodes_are_full(flow: Flow) -> Iterator[Problem]:
    """Every node of several has all of its devices: a plan is the same on each."""
    found = _nodes(flow)
    if found is None:
        return
    card, count, per_node = found.card, found.count, found.per_node
    if count <= per_node or count % per_node == 0:
        return
    full = count // per_node
    yield Problem(
        code="VLMC154",
        path=("target", "count"),
        related=(("target", "per_node"),),
        message=f"{count} x {card.name} do not fill nodes of {per_node}",
        expected=f"a multiple of {per_node}, or `per_node` that divides {count}",
        got=f"{count} = {full} x {per_node} + {count - full * per_node}",
        help=f"count: {(full + 1) * per_node}",
    )


def batch_feeds_replicas(flow: Flow) -> Iterator[Problem]:
    """Each replica has as many sequences as the others."""
    if flow.target is None:
        return
    target, stages = flow.target, () if flow.training is None else flow.training.stages
    batches: list[tuple[Path, int | Auto]] = [
        (("target", "workload", "batch"), target.workload.batch)
    ]
    if target.workload.mode == "train" and stages:  # each has a batch of its own
        batches = [
            (("training", "stages", index, "batch"), stage.batch)
            for index, stage in enumerate(stages)
        ]
    for path, batch in batches:
        if batch != "auto":
            yield from uneven(target, batch, path)


def uneven(target: Target, batch: int, path: Path | None = None) -> Iterator[Problem]:
    """Where replicas cannot share a batch, which stands at `path` or was given in the call."""
    replicas = target.parallel.words.data
    if replicas == "auto" or batch % replicas == 0:
        return
    own = target.parallel.language
    degree: Path = ("target", "parallel", "data")
    if own is not None and own.data != "auto":
        degree = ("target", "parallel", "language", "data")
    more = replicas * -(-batch // replicas)
    yield Problem(
        code="VLMC155",
        path=path or degree,
        related=(degree if path else ("target", "workload", "batch"),),
        message=f"a batch of {batch} cannot be shared by {replicas} replicas",
        expected=f"a batch that is a multiple of {replicas}",
        got=f"{batch} / {replicas} = {batch // replicas} remainder {batch % replicas}",
        help=f"batch: {more}"
        if path
        else f"--batch {more}, or data: {nearest_divisor(batch, replicas)}",
    )
