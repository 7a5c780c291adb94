"""`vlmc build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import Checkpoint, Json, Mini, Overrides, Specs
from vlmc.diagnostics import EnvironmentFault, UsageError


def build(
    specs: Specs,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write (default: generated/<spec>); for one spec only."),
    ] = None,
    checkpoint: Checkpoint = None,
    mini: Mini = False,
    seed: Annotated[
        int | None, typer.Option(help="Write seeded weights (a twin has them anyway).")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say which committed outputs are stale.")
    ] = False,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compile designs into folders: model.py, arch.txt, spec.resolved.yaml, README.md, manifest.json,
    and weights where there are any."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        if output is not None and len(specs) > 1:
            raise UsageError("--output names one folder, but several specs are given")
        if check:
            _check(specs, output, overrides or [], mini, as_json)
            return
        from vlmc import pipeline

        manifests: list[object] = []
        for path in specs:
            with _progress(quiet=as_json) as progress:
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
