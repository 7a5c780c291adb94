"""Two designs side by side: structure, parameters, tokens, FLOPs, memory, time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from vlmc.analysis.report import GraphReport, Phase
from vlmc.diagnostics.amount import count, volume
from vlmc.ir import Arch
from vlmc.partition.why import seconds
from vlmc.planning.made import Made
from vlmc.spec.document import PARTS, ModelSpec

PHASES: tuple[Phase, ...] = ("forward", "backward_input", "backward_weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of both designs."""

    section: str
    name: str
    values: tuple[Any, Any]
    """None where a design has no such figure."""
    shown: tuple[str, str]

    @property
    def differs(self) -> bool:
        """Whether the designs differ in it."""
        return self.values[0] != self.values[1]

    @property
    def ratio(self) -> float | None:
        """The second as a multiple of the first; None where that says nothing."""
        one, two = self.values
        if isinstance(one, bool) or not isinstance(one, int | float) or not one:
            return None
        return two / one if isinstance(two, int | float) and self.section != "structure" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two designs; without a target it has no plan."""

    spec: ModelSpec
    arch: Arch
    report: GraphReport | None = None
    made: Made | None = None


def compare(one: Side, two: Side) -> list[Line]:
    """Every figure of either design, in a fixed order."""
    lines: list[Line] = []
    for section, figures, written in (
        ("structure", _structure, str),
        ("parameters", _parameters, count),
        ("tokens", _tokens, _number),
        ("FLOPs", _flops, count),
        ("memory", _memory, volume),
        ("time", _time, seconds),
    ):
        lines += _joined(section, dict(figures(one)), dict(figures(two)), written)
    return lines


def _joined(
    section: str, one: dict[str, Any], two: dict[str, Any], written: Callable[..., str]
) -> Iterator[Line]:
    names = [*one, *(name for name in two if name not in one)]
    for name in names:
        values = (one.get(name), two.get(name))
        shown = ["" if value is None else written(value) for value in values]
        yield Line(section=section, name=name, values=values, shown=(shown[0], shown[1]))


def _number(value: int) -> str:
    return f"{value:,}"


def _structure(side: Side) -> Iterator[tuple[str, Any]]:
    for part in PARTS:
        values = getattr(side.spec, part).model_dump(mode="json", exclude={"weights"})
        yield from _flat(part, values)


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            yield from _flat(f"{path}.{key}", inner)
    elif value is not None:
        shown = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else value
        yield path, shown if not isinstance(value, list) else str(cast("list[Any]", value))


def _parameters(side: Side) -> Iterator[tuple[str, int]]:
    for node in side.arch.nodes:
        yield node.role, node.count
    yield "all", side.arch.parameters
    yield "trained", side.arch.trainable_parameters


def _tokens(side: Side) -> Iterator[tuple[str, int | None]]:
    tokens = side.arch.tokens
    yield "images", tokens.images
    yield "of an image", tokens.per_image
    yield "of an image in the sequence", tokens.in_sequence
    yield "text", tokens.text
    yield "sequence", tokens.sequence
    yield "context", tokens.context


def _flops(side: Side) -> Iterator[tuple[str, int]]:
    """Of one sequence of the budget, by part."""
    report, tokens = side.report, side.arch.tokens
    if report is None:
        return
    sizes = {"batch": 1, "text": tokens.text, "images": tokens.images, "tokens": tokens.per_image}
    by_part: dict[str, int] = {}
    backward = 0
    for block in report.blocks:
        for phase in PHASES:
            flops = int(block.flops(phase)(**sizes)) * block.count
            if phase == "forward":
                by_part[block.role] = by_part.get(block.role, 0) + flops
            else:
                backward += flops
    for part, flops in by_part.items():
        yield f"{part}, forward", flops
    yield "forward", sum(by_part.values())
    yield "backward", backward


def _memory(side: Side) -> Iterator[tuple[str, int]]:
    if side.made is None or side.made.plan.predicted is None:
        return
    rows = side.made.plan.predicted.memory
    fullest = max(rows, key=lambda one: one.total)
    for name in type(fullest).model_fields:
        yield name, getattr(fullest, name)
    yield "fullest device", fullest.total


def _time(side: Side) -> Iterator[tuple[str, float | None]]:
    if side.made is None or side.made.plan.predicted is None:
        return
    found = side.made.plan.predicted
    training = side.made.plan.mode == "train"
    yield "step" if training else "all answers", found.step_seconds
    yield "compute", found.compute_seconds + (found.token_compute_seconds or 0)
    yield "communication", sum(one.seconds for one in found.collectives)
    yield "bubble", found.bubble_seconds + (found.token_bubble_seconds or 0)
    yield "first token", found.first_token_seconds
    yield "token", found.token_seconds
