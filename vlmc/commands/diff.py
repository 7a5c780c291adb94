"""`vlmc diff`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import Json, Mini, Overrides
from vlmc.commands.plan_output import print_tables
from vlmc.commands.progress import shown
from vlmc.diagnostics import SpecError

if TYPE_CHECKING:
    from vlmc.planning.compare import Line, Side


def diff(
    one: Annotated[Path, typer.Argument(help="A spec file.", show_default=False)],
    two: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    mini: Mini = False,
    every: Annotated[bool, typer.Option("--all", help="Show what is alike, too.")] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compare two designs: structure, parameters, tokens, FLOPs and, where they have targets,
    memory and time of their plans. `--set` is for both."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        from vlmc.planning.compare import compare

        with shown("comparing", quiet=as_json) as progress:
            sides: list[Side] = []
            for path in (one, two):
                progress(str(path))
                sides.append(_side(path, tuple(overrides or ()), mini))
        lines = compare(*sides)
        if as_json:
            typer.echo(json.dumps({"version": 1, **_document(one, two, lines)}))
            return
        _print(one, two, lines, every)


def _side(path: Path, overrides: tuple[str, ...], mini: bool) -> Side:
    """A design with its graphs' costs and, where it has a target and a plan fits, that."""
    from vlmc.emit.reports import kept_reports
    from vlmc.pipeline import load_resolved
    from vlmc.planning.asked import asked
    from vlmc.planning.compare import Side
    from vlmc.planning.made import make
    from vlmc.planning.reports import Reports

    spec, arch = load_resolved(path, overrides, mini=mini)
    reports = Reports(kept_reports())
    report = reports.training(spec.mini() if mini else spec, arch)
    made = None
    if spec.target is not None:
        try:
            made = make(asked(spec, arch), source=spec.source, reports=reports)
        except SpecError as error:
            typer.echo(f"note: {path}: {error.diagnostics[0].message}", err=True)
    return Side(spec=spec.mini() if mini else spec, arch=arch, report=report, made=made)


def _document(one: Path, two: Path, lines: list[Line]) -> dict[str, object]:
    return {
        "designs": [str(one), str(two)],
        "differences": sum(line.differs for line in lines),
        "lines": [
            {
                "section": line.section,
                "name": line.name,
                "values": list(line.values),
                "differs": line.differs,
                "ratio": line.ratio,
            }
            for line in lines
        ],
    }


def _print(one: Path, two: Path, lines: list[Line], every: bool) -> None:
    from vlmc.planning.show import difference_table

    alike = sum(not line.differs for line in lines)
    if every or alike < len(lines):
        print_tables([difference_table(one.stem, two.stem, lines, every=every)])
    typer.echo(f"{len(lines) - alike} figures differ, {alike} are alike")
