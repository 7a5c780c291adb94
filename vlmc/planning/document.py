"""plan.yaml: a plan as text, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from vlmc.diagnostics import Diagnostic, Problem, SpecError
from vlmc.partition.plan import PLAN_VERSION, ParallelPlan
from vlmc.planning.checks import problems
from vlmc.spec.reader import read, read_text
from vlmc.spec.source import SourceMap
from vlmc.spec.tree import Mapping, plain
from vlmc.spec.validate import validate

NAME = "plan.yaml"
DIGITS = 6
"""Of a predicted figure: no prediction is better."""
HEADER = """\
# How {design} is run on {count} x {hardware}, as `vlmc plan` found it. What stands under
# `predicted` is not read when the plan runs. After an edit: vlmc plan SPEC --check plan.yaml
"""


@dataclass(frozen=True, slots=True)
class Written:
    """A plan that was read, with the place of each of its values."""

    plan: ParallelPlan
    source: SourceMap

    def diagnostics(self, more: list[Problem]) -> list[Diagnostic]:
        """Problems of the plan, at their places."""
        return [self.source.locate(problem) for problem in more]


def text_of(plan: ParallelPlan) -> str:
    """The text of plan.yaml. The same plan gives the same bytes."""
    data = _rounded(plan.model_dump(mode="json", exclude_none=True))
    header = HEADER.format(design=plan.design, count=plan.count, hardware=plan.hardware)
    body = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100,
        default_flow_style=False,
    )  # fmt: skip
    return header + body


def load_plan(path: Path) -> Written:
    """The plan of a file, edited by hand perhaps.

    Raises UsageError where there is no such file, SpecError with every mistake in it.
    """
    document = read(read_text(path), str(path))
    source = SourceMap(document.tree)
    data = plain(document.tree)
    if not isinstance(document.tree, Mapping):
        found = [Problem(code="VLMC008", path=(), message="a plan is a mapping",
                         expected="keys such as mesh, batch and stages", got="something else",
                         help="vlmc plan SPEC --output plan.yaml")]  # fmt: skip
        raise SpecError([*document.faults, *map(source.locate, found)])
    version = cast("dict[str, object]", data).get("version")
    if version != PLAN_VERSION or not isinstance(version, int) or isinstance(version, bool):
        found = [Problem(code="VLMC017", path=("version",),
                         message="this vlmc does not read that version of plans",
                         expected=str(PLAN_VERSION), got=str(version)[:60],
                         help=f"version: {PLAN_VERSION}")]  # fmt: skip
        raise SpecError([*document.faults, *map(source.locate, found)])
    plan, found = validate(ParallelPlan, data, ())
    if plan is not None:
        known = {problem.path for problem in found}
        found += [problem for problem in problems(plan) if problem.path not in known]
    if found or document.faults or plan is None:
        located = dict.fromkeys([*document.faults, *map(source.locate, found)])
        raise SpecError(sorted(located, key=lambda d: (d.span.line, d.span.column)))
    return Written(plan, source)


class _Dumper(yaml.SafeDumper):
    """Writes what YAML 1.1 and 1.2 read alike; what is held and small mappings on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _mapping(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.MappingNode:
    inline = not any(isinstance(item, list | dict) for item in value.values())
    inline = inline and not {"version", "step_seconds"} & set(value)
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=inline)  # pyright: ignore[reportUnknownMemberType]


def _list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    inline = not any(isinstance(item, list | dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=inline)  # pyright: ignore[reportUnknownMemberType]


_Dumper.add_representer(dict, _mapping)
_Dumper.add_representer(list, _list)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _rounded(item) for key, item in items}
    if isinstance(value, list):
        return [_rounded(item) for item in cast("list[Any]", value)]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
