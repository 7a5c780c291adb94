"""Rules about degrees of parallelism."""

from __future__ import annotations

from collections.abc import Iterator

from vlmc.components.contract import nearest_divisor
from vlmc.diagnostics import Problem
from vlmc.resolve.flow import Flow


def degrees_divide_heads(flow: Flow) -> Iterator[Problem]:
    """Tensor parallelism splits each part by its heads, so its degree divides them."""
    if flow.target is None:
        return
    parallel = flow.target.parallel
    for role in ("encoder", "language"):
        part = getattr(flow, role)
        own = getattr(parallel, role)
        path = ("target", "parallel", *((role,) if own is not None else ()), "tensor")
        degree = (own or parallel).tensor
        if part is None or degree == "auto":
            continue
        for place, heads in part.heads_for_tensor_parallel():
            if heads % degree == 0:
                continue
            grouped = place == ("kv_heads",)
            what = "key/value heads" if grouped else "heads"
            yield Problem(
                code="VLMC104" if grouped else "VLMC103",
                path=path,
                message=f"the {role} has {heads} {what}, which {degree} devices cannot share",
                expected=f"a degree that divides {heads}",
                got=f"{heads} / {degree} = {heads // degree} remainder {heads % degree}",
                help=f"parallel: {{{role}: {{tensor: {nearest_divisor(heads, degree)}}}}}",
            )


def devices_suffice(flow: Flow) -> Iterator[Problem]:
    """The degrees that are given multiply to no more devices than there are, and divide them."""
    if flow.target is None:
        return
    parallel = flow.target.parallel
    degrees = [d for d in (parallel.tensor, parallel.pipeline, parallel.data) if d != "auto"]
    product = 1
    for degree in degrees:
        product *= degree
    if flow.target.count % product:
        yield Problem(
            code="VLMC109",
            path=("target", "parallel"),
            message=f"the degrees of parallelism do not divide {flow.target.count} devices",
            expected=f"a product that divides {flow.target.count}",
            got=f"{' x '.join(map(str, degrees))} = {product}",
            help=f"count: {product * max(1, -(-flow.target.count // product))}",
            at_key=True,
        )
