"""Peak memory of a training step on one device, by what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Literal

from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import GraphReport, Level, Sizes, Visit

Checkpointing = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of each parameter's states."""

    trained: int = 4
    """The weight of a trained parameter."""
    frozen: int = 4
    """The weight of a frozen one."""
    gradient: int = 4
    optimiser: int = 8
    """Adam's two moments; 0 before its first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What is held at the moment when most is, in bytes."""

    weights: int
    gradients: int
    optimiser: int
    inputs: int
    activations: int
    """What is kept for the backward pass, and what is made on the way."""
    at: str
    """The block that runs then, or `optimiser`."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, one.name) for one in fields(self) if one.name != "at")


def peak(
    report: GraphReport,
    sizes: Sizes,
    states: States,
    checkpointing: Mapping[str, Checkpointing] | None = None,
) -> Peak:
    """The peak of a training step whose gradients were freed before it. `checkpointing` is that of
    blocks by name; a block that is not named keeps everything."""
    chosen = checkpointing or {}
    known: dict[int, tuple[int, list[tuple[int, int]], int]] = {}
    per_byte = Fraction(states.gradient, report.number_bytes)
    blocks = [report.blocks[place] for place in report.order]
    trained = sum(one.parameters for one in blocks if one.trained)
    # What does not run (a layer whose output is not read) never gets gradients or moments.
    stepped = [one for one in blocks if one.trained and one.reached]
    base = Peak(
        weights=trained * states.trained + (report.parameters - trained) * states.frozen,
        gradients=0,
        optimiser=sum(one.parameters for one in stepped) * states.optimiser,
        inputs=_at(report.inputs, sizes),
        activations=0,
        at="",
    )
    level = gradients = 0
    best = base
    for place in report.timeline:
        visit = report.visits[place]
        if place not in known:
            of = _level(visit, chosen.get(report.blocks[visit.block].name, "none"))
            tops = [(_at(top, sizes), int(made * per_byte)) for top, made in of.tops]
            known[place] = _at(of.change, sizes), tops, int(visit.gradients * per_byte)
        change, tops, made = known[place]
        for top, so_far in tops:
            if best.activations + best.gradients < level + top + gradients + so_far:
                best = replace(
                    base,
                    activations=level + top,
                    gradients=gradients + so_far,
                    at=report.blocks[visit.block].name,
                )
        level += change
        gradients += made
    spare = _stepping([one for block in stepped for one in block.tensors])
    spare *= states.optimiser // 2
    if best.activations + best.gradients < level + gradients + spare:
        best = replace(base, activations=level + spare, gradients=gradients, at="optimiser")
    return best


def _stepping(tensors: Sequence[int]) -> int:
    """Numbers that Adam makes on the way at most, one tensor after another: the root of the second
    moment and the denominator, while it still holds the denominator before."""
    before = (0, *tensors)
    return max((2 * one + last for last, one in zip(before, tensors, strict=False)), default=0)


def _level(visit: Visit, kept: Checkpointing) -> Level:
    return {"none": visit.none, "selective": visit.selective, "full": visit.full}[kept]


def _at(polynomial: Polynomial, sizes: Sizes) -> int:
    value = polynomial(batch=sizes.batch, text=sizes.text, images=sizes.images, tokens=sizes.tokens)
    return int(value)
