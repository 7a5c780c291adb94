"""Rules about degrees of parallelism."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.resolver.flow import Flow
from vlmc.spec.document import Degrees

NAMES = {"encoder": "encoder", "language": "language model"}
"""The parts that have degrees of their own, as a sentence calls them."""


def degrees_divide_heads(flow: Flow) -> Iterator[Problem]:
    """Tensor parallelism splits each part by its heads, so its degree divides them."""
    if flow.target is None:
        return
    parallel = flow.target.parallel
    for role, name in NAMES.items():
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
                message=f"the {name} has {heads} {what}, which {degree} devices cannot share",
                expected=f"a degree that divides {heads}",
                got=f"{heads} / {degree} = {heads // degree} remainder {heads % degree}",
                help=f"parallel: {{{role}: {{tensor: {nearest_divisor(heads, degree)}}}}}",
            )


def devices_suffice(flow: Flow) -> Iterator[Problem]:
    """The degrees that are given multiply to a number that divides the devices there are."""
    if flow.target is None or flow.target.count == "auto":
        return
    parallel, count = flow.target.parallel, flow.target.count
    path = ("target", "parallel")
    places: list[tuple[Path, Degrees]] = [(path, parallel)]
    for role in NAMES:
        if getattr(parallel, role) is not None:
            places.append(((*path, role), getattr(parallel, role)))
    for place, degrees in places:
        given = {
            name: degree
            for name in ("tensor", "pipeline", "data")
            if (degree := getattr(degrees, name)) != "auto"
        }
        product = math.prod(given.values())
        if count % product:
            written = " x ".join(f"{name} {degree}" for name, degree in given.items())
            yield Problem(
                code="VLMC109",
                path=place,
                message=f"{product} devices are asked for, which do not divide the {count} of the "
                f"target",
                expected=f"a product that divides {count}",
                got=f"{written} = {product}",
                help=f"count: {product * -(-count // product)}",
                at_key=True,
            )
