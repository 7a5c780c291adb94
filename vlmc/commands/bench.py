"""`vlmc bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import Json
from vlmc.commands.progress import shown
from vlmc.diagnostics import UsageError


def bench(
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Measure the present device and write it as a device file."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Device file to write (default: to standard output).")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What is measured.")] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of a processor (default: as many as torch takes).", min=1),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: bandwidth of its memory and rates of products over their sizes. The
    file that is written may stand in a spec as `target.hardware`."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        if not calibrate:
            raise UsageError("give --calibrate: `vlmc bench` measures nothing else")
        if output is not None and not _writable(output):
            raise UsageError(f"--output {output}: a file that ends in .yaml, in a folder, is named")
        if threads is not None and device == "cuda":
            raise UsageError("--threads is about a processor, and --device cuda is none")
        from vlmc.calibration import calibrate as measure

        with shown("calibrating", quiet=as_json) as progress:
            found = measure(device, threads=threads, progress=progress)
        if output is not None:
            output.write_text(found.to_yaml(), encoding="utf-8")
        if as_json:
            typer.echo(json.dumps({"version": 1, "device": found.to_json()}))
        elif output is None:
            typer.echo(found.to_yaml(), nl=False)
        else:
            typer.echo(f"{output}: {found.about}, {found.source}")


def _writable(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml") and path.parent.is_dir() and not path.is_dir()
