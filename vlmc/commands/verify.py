"""`vlmc verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import Json
from vlmc.commands.progress import shown

if TYPE_CHECKING:
    from vlmc.emit.verify.record import Verified
    from vlmc.emit.verify.verdict import Verdict


def verify(
    folder: Annotated[Path, typer.Argument(help="A build folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Look for changed bytes in a build, then execute its artifacts again and compare them with
    eager fp32. Ends with 3 where something is not as it was built, or off by more than it may."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        from vlmc import pipeline
        from vlmc.emit.compiling import compiling_in
        from vlmc.emit.store import store

        with compiling_in(store(_note)), shown(str(folder), quiet=as_json) as progress:
            verdict = pipeline.verify(folder, progress=progress, note=_note)
        if as_json:
            typer.echo(json.dumps({"version": 1, **verdict.to_json()}))
        else:
            _print(folder, verdict)
    if not verdict.sound:
        raise typer.Exit(3)


def _note(note: str) -> None:
    typer.echo(f"note: {note}", err=True)


def _print(folder: Path, verdict: Verdict) -> None:
    for fault in verdict.faults:
        typer.echo(fault)
    if not verdict.faults:
        typer.echo(f"{folder}: {verdict.files} files are as they were built")
    for name, reason in verdict.deferred.items():
        typer.echo(f"  {name} deferred: {reason}")
    if not verdict.engines:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("artifact", "engine", "measured on", "relative error", "tokens", "verdict")
    for name, found in verdict.engines.items():
        table.add_row(
            found.artifact,
            name,
            found.measured,
            f"{found.error:.1e} of {found.tolerance:.0e}",
            f"{found.tokens:.1%}",
            _verdict(found),
        )
    width = None if sys.stdout.isatty() else 100
    Console(width=width).print(table)


def _verdict(found: Verified) -> str:
    return "sound" if found.sound else "unsound"
