"""Rules about degrees of parallelism, and how a step is run on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.ir.training import why_not_zero, zero_stages
from vlmc.resolver.flow import Flow
from vlmc.spec.document import Auto, Degrees, Target

Split = Literal["encoder", "language"]
NAMES: dict[Split, str] = {"encoder": "encoder", "language": "language model"}
"""The parts that have degrees of their own, as a sentence calls them."""


def degrees_divide_heads(flow: Flow) -> Iterator[Problem]:
    """Tensor parallelism splits each part by its heads, so its degree divides them."""
    if flow.target is None:
        return
    for role, name in NAMES.items():
        degree, path = _degrees(flow.target, role).tensor, _place(flow.target, role, "tensor")
        if degree == "auto":
            continue
        for what, heads in _heads(flow, role):
            if heads % degree == 0:
                continue
            yield Problem(
                code="VLMC104" if what == "key/value heads" else "VLMC103",
                path=path,
                message=f"the {name} has {heads} {what}, which {degree} devices cannot share",
                expected=f"a degree that divides {heads}",
                got=f"{heads} / {degree} = {heads // degree} remainder {heads % degree}",
                help=f"parallel: {{{_fitting(flow, flow.target, role)}}}",
            )


def _degrees(target: Target, role: Split) -> Degrees:
    """The degrees of a part, its own or those of the whole model."""
    parallel = target.parallel
    return parallel.words if role == "language" else parallel.apart or parallel


def _place(target: Target, role: Split, name: str) -> Path:
    """Where a degree of a part stands."""
    own = getattr(target.parallel, role)
    of_its_own = own is not None and (role == "encoder" or getattr(own, name) != "auto")
    return ("target", "parallel", *((role,) if of_its_own else ()), name)


def _heads(flow: Flow, role: Split) -> list[tuple[str, int]]:
    part = getattr(flow, role)
    found = () if part is None else part.heads_for_tensor_parallel()
    return [("key/value heads" if at == ("kv_heads",) else "heads", n) for at, n in found]


def _fitting(flow: Flow, target: Target, role: Split) -> str:
    """Tensor degrees that the part's heads, the other part and the devices allow."""
    parallel = target.parallel
    if role == "encoder":
        return f"encoder: {{tensor: {_beside(flow, target)}}}"
    degrees = _degrees(target, "language")
    heads = [count for _, count in _heads(flow, "language")]
    alike = parallel.encoder is None and parallel.language is None
    if alike:
        heads += [count for _, count in _heads(flow, "encoder")]
    others = math.prod(one for name, one in _given(degrees).items() if name != "tensor")
    if target.count != "auto" and target.count % others == 0:
        heads.append(target.count // others)
    degree = 1 if degrees.tensor == "auto" else degrees.tensor
    own = f"tensor: {nearest_divisor(math.gcd(*heads), degree)}"
    if alike:
        return own
    return f"{own if parallel.language is None else f'language: {{{own}}}'}, encoder: {{tensor: 1}}"


def _beside(flow: Flow, target: Target) -> int | Auto:
    """The tensor degree of the encoder, nearest to what it is, that divides its heads and the
    language model's degree."""
    degree = _degrees(target, "language").tensor
    own = _degrees(target, "encoder").tensor
    if degree == "auto" or own == "auto":
        return "auto"
    heads = (count for _, count in _heads(flow, "encoder"))
    return nearest_divisor(math.gcd(degree, *heads), own)


def encoder_goes_with_language(flow: Flow) -> Iterator[Problem]:
    """The encoder's tensor degree divides the language model's: so many copies of it there are in a
    tensor group, each of them a replica. Its pipeline groups are the language model's, or, of
    copies, the first alone."""
    if flow.target is None:
        return
    encoder, language = (_degrees(flow.target, role) for role in NAMES)
    tensor, whole = encoder.tensor, language.tensor
    if tensor != "auto" and whole != "auto" and whole % tensor:
        near = _beside(flow, flow.target)
        yield Problem(
            code="VLMC158",
            path=_place(flow.target, "encoder", "tensor"),
            message="the encoder's tensor degree does not divide the language model's",
            expected=f"a divisor of {whole}",
            got=str(tensor),
            help=f"tensor: {near}",
        )
        tensor = near  # which the others are to go with
    copies = 1 if tensor == "auto" or whole == "auto" else whole // tensor
    replicas = language.data if language.data == "auto" else language.data * copies
    groups = (language.pipeline, 1) if copies > 1 else (language.pipeline,)
    for name, meant in (("pipeline", groups), ("data", (replicas,))):
        degree = getattr(encoder, name)
        if degree in ("auto", *meant):
            continue
        yield Problem(
            code="VLMC158",
            path=_place(flow.target, "encoder", name),
            message=f"the encoder's {name} degree is not that of "
            f"{'its copies' if copies > 1 else 'the language model'}",
            expected=" or ".join(map(str, meant)),
            got=str(degree),
            help=f"{name}: {meant[0]}",
        )


def model_goes_with_language(flow: Flow) -> Iterator[Problem]:
    """Pipeline groups and replicas are the language model's: where it has a number of its own, the
    whole model has no other."""
    parallel = None if flow.target is None else flow.target.parallel
    if parallel is None or parallel.language is None:
        return
    for name in ("pipeline", "data"):
        whole, own = getattr(parallel, name), getattr(parallel.language, name)
        if "auto" in (whole, own) or whole == own:
            continue
        yield Problem(
            code="VLMC158",
            path=("target", "parallel", name),
            related=(("target", "parallel", "language", name),),
            message=f"the language model has another {name} degree",
            expected=f"{own}, or none",
            got=str(whole),
            help=f"{name}: {own}",
        )


def steps_can_run(flow: Flow) -> Iterator[Problem]:
    """What is fixed of a training step goes together."""
    target = flow.target
    if target is None or target.workload.mode != "train":
        return
    parallel, path = target.parallel, ("target", "parallel")
    schedule, related = parallel.schedule, ((*path, "schedule"),)
    if schedule == "auto":
        return
    if parallel.chunks not in ("auto", 1) and schedule != "interleaved":
        yield Problem(
            code="VLMC158",
            path=(*path, "chunks"),
            related=related,
            message=f"with {schedule} each pipeline group holds one stage",
            expected="1, or schedule interleaved",
            got=str(parallel.chunks),
            help="chunks: 1",
        )
    groups = _degrees(target, "language").pipeline
    stages = zero_stages(schedule, 1 if groups == "auto" else groups)
    if parallel.zero != "auto" and parallel.zero not in stages:
        yield Problem(
            code="VLMC158",
            path=(*path, "zero"),
            related=related,
            message=why_not_zero(parallel.zero, schedule),
            expected=", ".join(map(str, stages)),
            got=str(parallel.zero),
            help=f"zero: {stages[-1]}",
        )


def devices_suffice(flow: Flow) -> Iterator[Problem]:
    """The degrees that are given multiply to a number that divides the devices there are."""
    if flow.target is None or flow.target.count == "auto":
        return
    parallel, count = flow.target.parallel, flow.target.count
    path: Path = ("target", "parallel")
    places: dict[Path, Degrees | None] = {path: parallel}
    places[(*path, "encoder")] = parallel.encoder
    places[(*path, "language")] = parallel.language and parallel.words
    asked = {place: _given(degrees) for place, degrees in places.items() if degrees is not None}
    every = math.lcm(*(math.prod(given.values()) for given in asked.values()))
    more = f"count: {every * -(-count // every)}"
    for place, given in asked.items():
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
                help=more if place == path else f"target: {{{more}}}",
                at_key=True,
            )


def _given(degrees: Degrees) -> dict[str, int]:
    """Those that are fixed, by name."""
    every = {name: getattr(degrees, name) for name in ("tensor", "pipeline", "data")}
    return {name: degree for name, degree in every.items() if degree != "auto"}
