"""`auto`: the fewest devices, the most images or words, the largest batch. Each answer comes with
the plan that does it and with the reason why one more (of devices: one less) does not do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, lcm, prod
from typing import Literal

from vlmc.analysis.report import GraphReport
from vlmc.diagnostics.faults import UsageError
from vlmc.hardware.cluster import Cluster
from vlmc.partition.request import Infeasible, Request
from vlmc.partition.search import Found, find

MOST_DEVICES = 4096
MOST_IMAGES = 4096
MOST_TEXT = 2**20
MOST_BATCH = 2**16
TEXT_STEP = 64
"""Text tokens are solved in such steps, which sequence parallelism over a node divides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """An answer with its proof."""

    value: int
    found: Found
    refused: int | None
    """The next value, which does not do; None where `value` is the end of what was asked."""
    reason: str
    """Why it does not."""


def greatest(attempt: Callable[[int], Found], most: int, step: int = 1) -> Solved:
    """The greatest multiple of `step` up to `most` that does; what does not do once never does for
    a greater one. Raises Infeasible where not even `step` does."""
    value, found = step, attempt(step)
    refused, reason = None, ""
    ahead = step
    while refused is None and value < most:
        trial = min(value + ahead, most // step * step)
        if trial == value:
            break
        try:
            value, found = trial, attempt(trial)
            ahead *= 2
        except Infeasible as error:
            refused, reason = trial, str(error)
    while refused is not None and refused - value > step:
        middle = (value + refused) // 2 // step * step
        try:
            value, found = middle, attempt(middle)
        except Infeasible as error:
            refused, reason = middle, str(error)
    return Solved(value=value, found=found, refused=refused, reason=reason)


def solve_count(
    report: GraphReport,
    cluster: Cluster,
    request: Request,
    *,
    decode: GraphReport | None = None,
    most: int = MOST_DEVICES,
) -> Solved:
    """The fewest devices on which the request can be met: up to a node any number, then whole
    nodes. Raises Infeasible with the reason at `most`."""
    refused, reason = None, ""
    last: Infeasible | None = None
    fixed = prod(one or 1 for one in (request.pipeline, request.data, request.tensor))
    for count in _counts(cluster.per_node, most):
        if count % fixed:
            continue
        try:
            found = find(report, replace(cluster, count=count), request, decode=decode)
        except Infeasible as error:
            refused, reason, last = count, str(error), error
            continue
        return Solved(value=count, found=found, refused=refused, reason=reason)
    raise Infeasible(
        f"No number of devices up to {most} does; at {refused}: {last.constraint}"
        if last
        else f"{most} devices are too few for the degrees, {fixed} in all",
        last.advice if last else "",
    )


def solve_budget(
    report: GraphReport,
    cluster: Cluster,
    request: Request,
    what: Literal["images", "text"],
    *,
    decode: GraphReport | None = None,
    most: int | None = None,
) -> Solved:
    """The most images of a sequence, or text tokens in steps of 64, that fit; up to `most`."""
    step, end = (1, MOST_IMAGES) if what == "images" else (TEXT_STEP, MOST_TEXT)
    most = end if most is None else min(end, most)
    step = min(step, most)

    def attempt(size: int) -> Found:
        asked = replace(request, images=size) if what == "images" else replace(request, text=size)
        return find(report, cluster, asked, decode=decode)

    return greatest(attempt, most, step)


def solve_batch(
    report: GraphReport,
    cluster: Cluster,
    request: Request,
    *,
    decode: GraphReport | None = None,
) -> Solved:
    """The largest batch that is served within the request's limits of latency: up to the number of
    devices any, then its multiples, which every number of replicas divides."""
    if request.mode == "train":
        raise UsageError(
            "a batch that is trained on has no upper end: more micro-batches take more time, "
            "not more memory"
        )

    def attempt(batch: int) -> Found:
        return find(report, cluster, replace(request, batch=batch), decode=decode)

    each = (request.data or 1) * (request.micro_batch or 1)
    step = lcm(cluster.count, each)
    try:
        return greatest(attempt, ceil(MOST_BATCH / step) * step, step)
    except Infeasible as error:
        refused, reason = step, str(error)
    for batch in range(step - each, 0, -each):
        try:
            return Solved(value=batch, found=attempt(batch), refused=refused, reason=reason)
        except Infeasible as error:
            refused, reason = batch, str(error)
    raise Infeasible(reason)


def _counts(per_node: int, most: int) -> list[int]:
    within = list(range(1, min(per_node, most) + 1))
    return within + list(range(2 * per_node, most + 1, per_node))
