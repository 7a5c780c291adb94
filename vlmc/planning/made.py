"""From what is asked to a plan: analysis, search, and the picture of its pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, Protocol

from vlmc.analysis.report import GraphReport, Mode
from vlmc.diagnostics import Diagnostic, Problem, SpecError, UsageError
from vlmc.ir import Arch, Role
from vlmc.partition.chain import Chain
from vlmc.partition.costs import ENCODER_SIDE, Rooflines
from vlmc.partition.plan import Checkpointing, ParallelPlan
from vlmc.partition.request import Infeasible, Precision
from vlmc.partition.schedule.orders import Op, orders_of
from vlmc.partition.schedule.picture import timeline_svg
from vlmc.partition.schedule.simulation import Durations, Transfer, simulate
from vlmc.partition.schedule.timeline import Timeline
from vlmc.partition.search import Found, find
from vlmc.partition.setting import Setting
from vlmc.partition.solve import Solved, solve_batch, solve_budget, solve_count
from vlmc.planning.asked import WRITTEN, Asked, Unsettled
from vlmc.planning.shares import placed
from vlmc.spec.document import ModelSpec
from vlmc.spec.identity import fingerprint
from vlmc.spec.source import SourceMap


class Progress(Protocol):
    """Told what is being done."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Tells nobody."""


class Kept(Protocol):
    """Reports of earlier calls, by what they follow from."""

    def fetch(
        self, arch: Arch, mode: Mode, trained: tuple[Role, ...], precision: Precision
    ) -> GraphReport | None:
        """One of them; None where there is none."""
        ...

    def keep(
        self,
        arch: Arch,
        mode: Mode,
        trained: tuple[Role, ...],
        precision: Precision,
        report: GraphReport,
    ) -> None:
        """Keeps one for calls to come."""
        ...


@dataclass(frozen=True, slots=True)
class Reports:
    """What was read off graphs: once for each design, whatever it is planned for."""

    kept: Kept | None = None
    _known: dict[tuple[object, ...], GraphReport] = field(
        default_factory=dict[tuple[object, ...], GraphReport]
    )

    def of(self, asked: Asked) -> tuple[GraphReport, GraphReport | None]:
        """Of a training step; when serving, of prompts and of one more token."""
        spec, arch, precision = asked.spec, asked.arch, asked.request.precision
        if asked.request.mode == "train":
            return self._report(spec, arch, "train", asked.trained, precision), None
        prompts = self._report(spec, arch, "prefill", (), precision)
        if arch.serving == "single_pass":  # its answer is there when it has read
            return prompts, None
        return prompts, self._report(spec, arch, "decode", (), precision)

    def training(self, spec: ModelSpec, arch: Arch) -> GraphReport:
        """Of a training step of all that is not frozen, whatever the target asks."""
        free = (node for node in arch.nodes if not node.frozen and node.count)
        trained: tuple[Role, ...] = tuple(node.role for node in free)
        return self._report(spec, arch, "train", trained, "bf16")

    def _report(
        self,
        spec: ModelSpec,
        arch: Arch,
        mode: Mode,
        trained: tuple[Role, ...],
        precision: Precision,
    ) -> GraphReport:
        key = (fingerprint(spec), arch.tokens, mode, trained, precision)
        if key not in self._known:
            self._known[key] = self._read(arch, mode, trained, precision)
        return self._known[key]

    def _read(
        self, arch: Arch, mode: Mode, trained: tuple[Role, ...], precision: Precision
    ) -> GraphReport:
        if self.kept is not None:
            earlier = self.kept.fetch(arch, mode, trained, precision)
            if earlier is not None:
                return earlier
        # torch is imported here and not above: a bad spec is answered before that.
        from vlmc.analysis.analyse import analyse

        report = analyse(arch, mode=mode, trained=trained, precision=precision)
        if self.kept is not None:
            self.kept.keep(arch, mode, trained, precision, report)
        return report


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

    Raises SpecError (VLMC157, placed by `source`) where nothing fits, UsageError where what is
    asked cannot be meant.
    """
    progress("reading costs off the graphs")
    report, decode = (reports or Reports()).of(asked)
    asked = replace(asked, request=replace(asked.request, tokens=report.tokens))
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
    """What of the budget the context holds; None where nothing bounds it."""
    tokens, spec = asked.arch.tokens, asked.spec
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A training plan's stages as the schedule runs them."""

    durations: Durations
    transfer: Transfer
    first_backward: int


def pipeline(made: Made) -> Pipeline:
    """What each stage of a training plan takes, by what `find` reckoned with."""
    plan, asked = made.plan, made.asked
    chain = Chain(Rooflines(made.report, asked.cluster, asked.request), setting(plan, made.report))
    ends = [0]
    for stage in plan.stages:
        ends.append(ends[-1] + sum(held.last - held.first + 1 for held in stage.holds))
    stages = list(pairwise(ends))

    def of(sums: list[float]) -> list[float]:
        return [sums[end] - sums[first] for first, end in stages]

    forward, backward, late = of(chain.forward), of(chain.backward), of(chain.late)
    split = plan.schedule == "zero_bubble"

    def durations(stage: int, op: Op, micro_batch: int) -> float:
        if op == "F":
            return forward[stage]
        if op == "B" or not split:
            return backward[stage]
        inputs = 0.0 if stage == 0 else backward[stage] - late[stage]
        return inputs if op == "I" else backward[stage] - inputs

    def transfer(one: int, two: int) -> float:
        return chain.send(ends[max(one, two)])

    reached = [stage for stage, seconds in enumerate(backward) if seconds > 0]
    return Pipeline(
        durations=durations,
        transfer=transfer,
        first_backward=reached[0] if reached else len(stages),
    )


def setting(plan: ParallelPlan, report: GraphReport) -> Setting:
    """The point of the search's space that a plan stands for."""

    def keeps(encoder: bool) -> Checkpointing:
        names = [one.name for one in report.blocks if (one.role in ENCODER_SIDE) == encoder]
        for name in names:
            if name in plan.checkpointing:
                return plan.checkpointing[name]
        return "none"

    return Setting(
        pipeline=plan.mesh.pipeline,
        data=plan.mesh.data,
        tensor=plan.mesh.tensor,
        sequence_parallel=plan.sequence_parallel,
        zero=plan.zero,
        micro_batch=plan.micro_batch,
        micro_batches=plan.micro_batches,
        schedule=plan.schedule,
        chunks=plan.chunks,
        encoder_keeps=keeps(True),
        language_keeps=keeps(False),
        placement=plan.placement,
    )


def timeline(made: Made) -> Timeline | None:
    """When each pipeline group does what in one step; None where there is no pipeline."""
    if made.plan.mode != "train" or made.plan.mesh.pipeline == 1:
        return None
    parts = pipeline(made)
    return simulate(
        orders_of(made.plan),
        parts.durations,
        parts.transfer,
        first_backward=parts.first_backward,
    )


def picture(made: Made) -> str | None:
    """The pipeline's timeline as SVG; None where there is no pipeline."""
    plan, times = made.plan, timeline(made)
    if times is None:
        return None
    title = (
        f"{plan.design}: {plan.schedule}, {plan.mesh.pipeline} groups, "
        f"{plan.micro_batches} micro-batches of {plan.micro_batch}"
    )
    return timeline_svg(times, title=title)
