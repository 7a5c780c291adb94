"""`vlmc build`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlmc.commands.guard import Format, guarded
from vlmc.commands.options import MAX_SEED, Checkpoint, Json, Mini, Overrides, Specs
from vlmc.commands.progress import shown, timed
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
    artifacts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="What to make in place of what the spec says: model, compile, onnx, aoti, plan.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="Number format of the written weights (default: the checkpoint's)."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operators: 23 or 20 (default: 23).")
    ] = None,
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option(help="Write ONNX graphs with the language model's weights in so many bits."),
    ] = None,
    quantize_vision: Annotated[
        bool, typer.Option("--quantize-vision", help="Quantise the vision graph, too.")
    ] = False,
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Mean error of quantised logits, relative to their standard deviation, above "
            "which the build is refused (default: 0.1 for int8, 0.5 for int4)."
        ),
    ] = None,
    layout: Annotated[
        Literal["transformers.js"] | None,
        typer.Option(help="Write the ONNX graphs under another client's names, too."),
    ] = None,
    overrides: Overrides = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Say what each pass does to each graph, and what takes time."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile designs into folders: model.py, run.py, arch.txt, spec.resolved.yaml, README.md,
    manifest.json; where there are weights those and graphs, executed and compared with eager."""
    style: Format = "json" if as_json else "text"
    with guarded(style):
        if output is not None and len(specs) > 1:
            raise UsageError("--output names one folder, but several specs are given")
        options = {
            "dtype": dtype,
            "opset": opset,
            "quantize": quantize,
            "quantize_vision": quantize_vision or None,
            "max_error": max_error,
            "layout": layout,
        }
        said = {name: value for name, value in options.items() if value is not None}
        wanted = None if artifacts is None else [word.strip() for word in artifacts.split(",")]
        if check:
            if checkpoint is not None or seed is not None or said:
                raise UsageError(
                    "--check compares text outputs: it takes no weights, and no option of graphs"
                )
            _check(specs, output, overrides or (), mini=mini, wanted=wanted, as_json=as_json)
            return
        from vlmc import pipeline

        manifests: list[dict[str, Any]] = []
        for path in specs:
            with shown(str(path), quiet=as_json) as stage:
                progress = timed(stage) if verbose else stage
                manifest = pipeline.build(
                    path,
                    output,
                    overrides=overrides or (),
                    mini=mini,
                    checkpoint=checkpoint,
                    seed=seed,
                    artifacts=wanted,
                    options=said,
                    progress=progress,
                    tell=_line if verbose else None,
                    note=_note,
                )
                progress("done")
            manifests.append(manifest.to_json())
            if not as_json:
                typer.echo(manifest.summary())
        if as_json:
            typer.echo(json.dumps({"version": 1, "builds": manifests}))


def _line(line: str) -> None:
    typer.echo(line, err=True)


def _note(note: str) -> None:
    typer.echo(f"note: {note}", err=True)


def _check(
    specs: list[Path],
    output: Path | None,
    overrides: Sequence[str],
    *,
    mini: bool,
    wanted: list[str] | None,
    as_json: bool,
) -> None:
    """Ends with 1 where a committed output is not what a build of today would write."""
    from vlmc import pipeline

    stale = [
        found
        for path in specs
        for found in pipeline.check(path, output, overrides=overrides, mini=mini, artifacts=wanted)
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
