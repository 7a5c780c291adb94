"""`vlmc build`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import MAX_SEED, Checkpoint, Json, Mini, Overrides, Specs
from vlmc.commands.progress import shown
from vlmc.diagnostics import UsageError


def build(
    specs: Specs,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write (default: generated/<spec>); for one spec only."),
    ] = None,
    checkpoint: Checkpoint = None,
    mini: Mini = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Write seeded weights (a twin has them anyway).", min=0, max=MAX_SEED),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say which committed outputs are stale.")
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compile designs into folders: model.py, arch.txt, spec.resolved.yaml, README.md,
    manifest.json, and weights where there are any."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        if output is not None and len(specs) > 1:
            raise UsageError("--output names one folder, but several specs are given")
        if check:
            if checkpoint is not None or seed is not None:
                raise UsageError("--check compares text outputs: it takes no weights")
            _check(specs, output, overrides or (), mini=mini, as_json=as_json)
            return
        from vlmc import pipeline

        manifests: list[dict[str, Any]] = []
        for path in specs:
            with shown(str(path), quiet=as_json) as progress:
                manifest = pipeline.build(
                    path,
                    output,
                    overrides=overrides or (),
                    mini=mini,
                    checkpoint=checkpoint,
                    seed=seed,
                    progress=progress,
                )
            manifests.append(manifest.to_json())
            if not as_json:
                typer.echo(manifest.summary())
        if as_json:
            typer.echo(json.dumps({"version": 1, "builds": manifests}))


def _check(
    specs: list[Path], output: Path | None, overrides: Sequence[str], *, mini: bool, as_json: bool
) -> None:
    """Ends with 1 where a committed output is not what a build of today would write."""
    from vlmc import pipeline

    stale = [
        found
        for path in specs
        for found in pipeline.check(path, output, overrides=overrides, mini=mini)
    ]
    if as_json:
        rows = [{"path": str(s.path), "state": s.state, "command": s.command} for s in stale]
        typer.echo(json.dumps({"version": 1, "stale": rows}))
    else:
        for found in stale:
            typer.echo(str(found))
        if not stale:
            typer.echo(
                "1 build is current" if len(specs) == 1 else f"{len(specs)} builds are current"
            )
    if stale:
        raise typer.Exit(1)
