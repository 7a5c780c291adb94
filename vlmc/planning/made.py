"""From what is asked to a plan: analysis, then search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from vlmc.analysis.report import GraphReport
from vlmc.diagnostics import Diagnostic, Problem, SpecError, UsageError
from vlmc.partition.plan import ParallelPlan
from vlmc.partition.request import Infeasible
from vlmc.partition.search import Found, find
from vlmc.partition.solve import Solved, solve_batch, solve_budget, solve_count
from vlmc.planning.asked import WRITTEN, Asked, Unsettled
from vlmc.planning.checks import checkpointed
from vlmc.planning.reports import Reports
from vlmc.planning.shares import placed
from vlmc.spec.source import SourceMap


class Progress(Protocol):
    """Told what is being done."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A plan with all that it was made of."""

    asked: Asked
    report: GraphReport
    decode: GraphReport | None
    found: Found
    solved: Solved | None = None
    """What was found for what is `auto`, and why one more (of devices: one less) does not do."""

    @property
    def plan(self) -> ParallelPlan:
        """The best plan."""
        return self.found.plan

    def to_json(self) -> dict[str, object]:
        """What `vlmc plan --json` prints."""
        found = self.found
        return {
            "version": 1,
            "stage": self.asked.stage,
            "plan": found.plan.model_dump(mode="json"),
            "alternatives": [one.model_dump(mode="json") for one in found.alternatives],
            "bound_seconds": found.bound_seconds,
            "proven": found.proven,
            "settings": found.settings,
            "why": list(found.why),
            "auto": self._auto(),
        }

    def _auto(self) -> dict[str, object] | None:
        if self.asked.auto is None or self.solved is None:
            return None
        return {
            "key": WRITTEN[self.asked.auto],
            "value": self.solved.value,
            "refused": self.solved.refused,
            "reason": self.solved.reason,
        }


def make(
    asked: Asked,
    *,
    source: SourceMap | None = None,
    progress: Progress = silent,
    reports: Reports | None = None,
) -> Made:
    """The best plan for what is asked.

    Raises SpecError, placed by `source`, where nothing fits (VLMC157) or the target names blocks
    that the design does not have (VLMC162), UsageError where what is
    asked cannot be meant.
    """
    progress("reading costs off the graphs")
    report, decode = (reports or Reports()).of(asked)
    asked = replace(asked, request=replace(asked.request, tokens=report.tokens))
    unknown = list(checkpointed(asked.target, report))
    if unknown:
        raise SpecError([placed(one, source, asked.spec.name) for one in unknown])
    progress("searching")
    solved = None
    try:
        if asked.auto is None:
            found = find(report, asked.cluster, asked.request, decode=decode)
        else:
            solved = solve(asked, asked.auto, report, decode)
            found, asked = solved.found, _settled(asked, asked.auto, solved)
    except Infeasible as error:
        raise SpecError([_nothing_fits(asked, error, source)]) from None
    return Made(asked=asked, report=report, decode=decode, found=found, solved=solved)


def solve(asked: Asked, auto: Unsettled, report: GraphReport, decode: GraphReport | None) -> Solved:
    """The fewest devices; the largest batch; the most images or text of what the context holds.
    Raises Infeasible where nothing does."""
    cluster, request = asked.cluster, asked.request
    match auto:
        case "count":
            return solve_count(report, cluster, request, decode=decode)
        case "batch":
            return solve_batch(report, cluster, request, decode=decode)
        case "images" | "text":
            if _room(asked, auto) == 0:
                raise UsageError(
                    f"token_budget.images: auto: {asked.arch.tokens.text} text tokens leave no "
                    "room for an image in the context; give less text"
                )
            return solve_budget(
                report, cluster, request, auto, decode=decode, most=_room(asked, auto)
            )


def _room(asked: Asked, what: Literal["images", "text"]) -> int | None:
    """What of the budget the context holds, and the text, where images have tokens in it; None
    where nothing bounds it."""
    tokens, spec = asked.arch.tokens, asked.spec
    if what == "images" and spec.fusion.words():
        return (tokens.text - 1) // spec.fusion.words()
    visual = spec.adapter.output(spec.encoder.visual(), spec.language)
    each = spec.fusion.positions(visual)
    bounded = tokens.context is not None and (what == "text" or each > 0)
    return (tokens.text if what == "text" else tokens.images) if bounded else None


def _settled(asked: Asked, auto: Unsettled, solved: Solved) -> Asked:
    """What is asked with the answer in place."""
    value = solved.value
    if auto == "count":
        return replace(asked, cluster=replace(asked.cluster, count=value))
    return replace(asked, request=replace(asked.request, **{auto: value}))


def _nothing_fits(asked: Asked, error: Infeasible, source: SourceMap | None) -> Diagnostic:
    cluster = asked.cluster
    problem = Problem(
        code="VLMC157",
        path=("target", "count"),
        related=(("target", "hardware"),),
        message=f"no plan fits {cluster.count} x {cluster.device.name}",
        expected="a plan within every hard constraint",
        got=error.constraint,
        help=error.advice or "more devices, a smaller batch, or fewer tokens",
    )
    return placed(problem, source, asked.spec.name)
