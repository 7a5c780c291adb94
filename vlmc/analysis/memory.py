"""Peak memory of a training step on one device, by what it holds.

On a CUDA device torch's caching allocator gives no less than 512 bytes and multiples of that: with
`States.quantum` each parameter's weight, gradient and moments are rounded up, which is what
`max_memory_allocated` sees of them. Activations are not: they are few and large. What the allocator
reserves beyond that (segments of 2 MiB for what is small, of 20 MiB for what is not, and holes in
them) depends on the order of all that went before; a planner leaves a share of memory for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Literal

from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import Block, GraphReport, Level, Sizes, Visit

Checkpointing = Literal["none", "selective", "full"]
CUDA_QUANTUM = 512
"""Bytes: kMinBlockSize of c10/cuda/CUDACachingAllocator."""


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
    quantum: int = 1
    """What the device's allocator rounds each of them up to: CUDA_QUANTUM, or 1."""

    def held(self, tensors: Sequence[int], each: int) -> int:
        """Bytes of tensors of so many numbers, of `each` bytes."""
        return sum(-(-one * each // self.quantum) for one in tensors) * self.quantum


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What is held at the moment when most is, in bytes."""

    weights: int
    gradients: int
    optimiser: int
    inputs: int
    activations: int
    """What is kept for the backward pass, and what is made on the way."""
    gathered: int = 0
    """Whole weights beside their shards."""
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
    gathered: Sequence[int] = (),
) -> Peak:
    """The peak of a training step whose gradients were freed before it. `checkpointing` is that of
    blocks by name; a block that is not named keeps everything. `gathered` is
    how many bytes of whole weights are held beside their shards at each place of the timeline, if
    any are; the optimiser's step has none."""
    chosen = checkpointing or {}
    known: dict[int, tuple[int, list[tuple[int, int]], int]] = {}
    per_byte = Fraction(states.gradient, report.number_bytes)
    blocks = [report.blocks[place] for place in report.order]
    weights = sum(
        states.held(one.tensors, states.trained if one.trained else states.frozen) for one in blocks
    )
    # What does not run (a layer whose output is not read) never gets gradients or moments.
    stepped = [one for one in blocks if one.trained and one.reached]
    moments = [one for block in stepped for one in block.tensors]
    base = Peak(
        weights=weights,
        gradients=0,
        optimiser=2 * states.held(moments, states.optimiser // 2),
        inputs=_at(report.inputs, sizes),
        activations=0,
        at="",
    )
    level = gradients = 0
    best = base
    beside_each = gathered or [0] * len(report.timeline)
    for place, beside in zip(report.timeline, beside_each, strict=True):
        visit = report.visits[place]
        if place not in known:
            block = report.blocks[visit.block]
            of = _level(visit, chosen.get(block.name, "none"))
            each = per_byte * _rounding(states, block)
            tops = [(_at(top, sizes), int(made * each)) for top, made in of.tops]
            known[place] = _at(of.change, sizes), tops, int(visit.gradients * each)
        change, tops, made = known[place]
        for top, so_far in tops:
            moment = replace(
                base,
                activations=level + top,
                gradients=gradients + so_far,
                gathered=beside,
                at=report.blocks[visit.block].name,
            )
            best = max(best, moment, key=_total)
        level += change
        gradients += made
    spare = _stepping(moments) * (states.optimiser // 2)
    step = replace(base, activations=level + spare, gradients=gradients, at="optimiser")
    return max(best, step, key=_total)


def _rounding(states: States, block: Block) -> Fraction:
    """What the gradients of a block take, as a multiple of their bytes."""
    exact = block.parameters * states.gradient
    return Fraction(states.held(block.tensors, states.gradient), exact) if exact else Fraction(1)


def _total(moment: Peak) -> int:
    return moment.total


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
