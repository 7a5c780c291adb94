"""`vlmc plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import Json, Mini, Overrides
from vlmc.commands.plan_output import (
    check_writable,
    print_plan,
    print_sweep,
    refused,
    sound,
    write,
)
from vlmc.commands.progress import shown
from vlmc.diagnostics import Problem, SpecError, UsageError

if TYPE_CHECKING:
    from vlmc.planning.asked import Asked
    from vlmc.planning.made import Made
    from vlmc.planning.reports import Reports
    from vlmc.spec.document import ModelSpec

MOST = 2**31 - 1
"""Sequences of a batch, as in specs."""


def plan(
    words: Annotated[
        list[str],
        typer.Argument(metavar="SPEC", help="A spec file, or a build folder.", show_default=False),
    ],
    mini: Mini = False,
    count: Annotated[
        int | None, typer.Option(help="Devices, in place of target.count.", min=1)
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Sequences of a step, or answered at once.", min=1, max=MOST)
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Stage of training (default: the first).")
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Say why this plan, beside the next three.")
    ] = False,
    simulate: Annotated[
        str | None,
        typer.Option(
            metavar="stragglers,failures", help="Simulate a slow device, lost nodes, or both."
        ),
    ] = None,
    slow: Annotated[
        float | None,
        typer.Option(help="Percent of its speed that the slow device lacks (default: 20)."),
    ] = None,
    mtbf_hours: Annotated[
        float | None, typer.Option(help="Hours between two failures of one node (default: 6300).")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B", help="Plan every combination; more KEY=A,B may follow behind it."
        ),
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Check this plan for SPEC and search for none.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write (default: plan.yaml); with --sweep a folder (sweep)."),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Find how a design is run on its target: degrees, schedule, memory, time. Writes plan.yaml,
    a picture of the pipeline and DeepSpeed's config beside it; with --json only to --output."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        path, swept = _words(words, sweep)
        given = {
            "--sweep": swept, "--why": why, "--simulate": simulate is not None,
            "--slow": slow is not None, "--mtbf-hours": mtbf_hours is not None,
            "--output": output is not None,
        }  # fmt: skip
        _belong([name for name, there in given.items() if there], check, simulate)
        session = _Session(path, tuple(overrides or ()), mini, count, batch, stage, quiet=as_json)
        if check is not None:
            session.check(check, as_json=as_json)
        elif swept:
            folder = output or (None if as_json else Path("sweep"))
            session.sweep(swept, folder, as_json=as_json)
        else:
            session.plan(output, why, simulate, slow, mtbf_hours, as_json=as_json)


def _words(words: list[str], sweep: list[str] | None) -> tuple[Path, list[str]]:
    """The spec and what is swept: whatever has an equals sign follows --sweep."""
    specs = [word for word in words if "=" not in word or Path(word).exists()]
    swept = [word for word in words if word not in specs]
    if swept and not sweep:
        raise UsageError(f"{swept[0][:100]!r} stands behind no --sweep; did you mean --set?")
    if len(specs) != 1:
        raise UsageError("name one spec file" if not specs else "one spec is planned at a time")
    return Path(specs[0]), [*(sweep or ()), *swept]


def _belong(given: list[str], check: Path | None, simulate: str | None) -> None:
    """Raises UsageError where an option would be read by nothing."""
    if check is not None and given:
        raise UsageError(f"--check makes no plan: leave out {', '.join(given)}")
    about_one = [name for name in given if name not in ("--sweep", "--output")]
    if "--sweep" in given and about_one:
        raise UsageError(f"--sweep makes many plans, {', '.join(about_one)} is about one plan")
    for name, kind in (("--slow", "stragglers"), ("--mtbf-hours", "failures")):
        if name in given and kind not in (simulate or ""):
            raise UsageError(f"{name} belongs to --simulate {kind}")


class _Session:
    """One call of the command."""

    def __init__(
        self,
        path: Path,
        overrides: tuple[str, ...],
        mini: bool,
        count: int | None,
        batch: int | None,
        stage: str | None,
        *,
        quiet: bool,
    ) -> None:
        self.path, self.mini, self.quiet = path, mini, quiet
        self.batch, self.stage = batch, stage
        self.overrides = overrides if count is None else (*overrides, f"target.count={count}")

    def reports(self) -> Reports:
        """What is read off graphs, and was in earlier calls."""
        from vlmc.emit.reports import kept_reports
        from vlmc.planning.reports import Reports

        return Reports(kept_reports())

    def asked(self, more: tuple[str, ...] = ()) -> tuple[Asked, ModelSpec]:
        """What the spec asks with `more` overrides, and the spec itself."""
        from vlmc.pipeline import load_resolved
        from vlmc.planning.asked import asked

        spec, arch = load_resolved(self.path, (*self.overrides, *more), mini=self.mini)
        return asked(spec, arch, batch=self.batch, stage=self.stage), spec

    def made(self, more: tuple[str, ...] = (), *, reports: Reports | None = None) -> Made:
        """The best plan with `more` overrides."""
        from vlmc.planning.made import make

        asked, spec = self.asked(more)
        with shown(str(self.path), quiet=self.quiet) as progress:
            return make(
                asked, source=spec.source, progress=progress, reports=reports or self.reports()
            )

    def plan(
        self,
        output: Path | None,
        why: bool,
        simulate: str | None,
        slow: float | None,
        mtbf_hours: float | None,
        *,
        as_json: bool,
    ) -> None:
        """Finds, writes and prints one plan."""
        from vlmc.planning.risks import check_given, kinds, simulate_risks

        named = () if simulate is None else kinds(simulate)
        check_given(slow, mtbf_hours)
        written = output or (None if as_json else Path("plan.yaml"))
        if written is not None:
            check_writable(written)
        if named and self.asked()[0].request.mode != "train":
            raise UsageError("--simulate is about training: give mode: train in target.workload")
        made = self.made()
        risks = simulate_risks(made, named, slow, mtbf_hours) if named else None
        files = [] if written is None else write(made, written)
        reason = None if written is None else refused(made)
        if as_json:
            document = made.to_json() | ({"risks": risks.to_json()} if risks else {})
            typer.echo(json.dumps(document))
            return
        print_plan(made, why, risks)
        typer.echo(f"written: {', '.join(str(file) for file in files)}")
        if reason is not None:
            typer.echo(reason)

    def check(self, path: Path, *, as_json: bool) -> None:
        """Ends with 1 where a plan is not one of the spec's, or does not fit."""
        from vlmc.emit.parallel.deepspeed import faults_beside
        from vlmc.emit.parallel.parts_of import parts_of
        from vlmc.planning.checks import against, for_parts
        from vlmc.planning.document import load_plan
        from vlmc.planning.weighed import meant, too_heavy, unknown_device, weigh

        written = load_plan(path)
        spec, plan = self.asked()[0], written.plan
        beside = faults_beside(path, plan)

        def refuse(found: list[Problem]) -> None:
            if found:
                raise SpecError([*written.diagnostics(found), *beside])

        refuse([*against(plan, spec.request.spec, None), *unknown_device(plan, spec)])
        asked = meant(plan, spec)
        refuse(list(for_parts(plan, parts_of(asked.spec, asked.arch))))
        with shown(str(path), quiet=self.quiet) as progress:
            progress("reading costs off the graphs")
            report, decode = self.reports().of(asked)
        refuse(list(against(plan, plan.spec, report)))
        predicted = weigh(plan, asked, report, decode)
        refuse(list(too_heavy(plan, predicted, asked.cluster)))
        if beside:
            raise SpecError(beside)
        if as_json:
            document: dict[str, object] = {"version": 1, "diagnostics": [], "design": plan.design}
            document["predicted"] = predicted.model_dump(mode="json")
            typer.echo(json.dumps(document))
        else:
            typer.echo(f"{path}: {sound(plan, predicted, asked.cluster)}")

    def sweep(self, swept: list[str], folder: Path | None, *, as_json: bool) -> None:
        """Plans every combination; writes a table and a picture where there is a folder. Ends with
        1 where none can be planned."""
        from vlmc.planning import sweep as sweeps
        from vlmc.planning.pareto import pareto_svg

        values = sweeps.values(swept)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"--output {folder}: with --sweep it names a folder")
        reports = self.reports()
        with shown("sweep", quiet=self.quiet) as progress:
            quiet, self.quiet = self.quiet, True
            rows = sweeps.rows(
                values,
                lambda more: self.made(more, reports=reports),
                progress=lambda done, total: progress("planning", done, total),
            )
            self.quiet = quiet
        files: list[Path] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            files = [folder / "sweep.csv", folder / "pareto.svg"]
            title = f"{self.path.stem}: {' x '.join(key for key, _ in values)}"
            files[0].write_text(sweeps.as_csv(values, rows), encoding="utf-8")
            files[1].write_text(pareto_svg(rows, title=title), encoding="utf-8")
        if as_json:
            typer.echo(json.dumps({"version": 1, "rows": sweeps.as_json(values, rows)}))
        else:
            print_sweep(values, rows)
            typer.echo(f"written: {', '.join(str(file) for file in files)}")
        if all(row.fault for row in rows):
            raise typer.Exit(1)
