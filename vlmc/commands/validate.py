"""`vlmc validate`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vlmc.commands.guard import Format, guarded, show
from vlmc.commands.options import Json, Overrides, Specs
from vlmc.diagnostics import Diagnostic, SpecError, UsageError, render
from vlmc.diagnostics.amount import count
from vlmc.ir import Arch


def validate(
    specs: Specs,
    overrides: Overrides = None,
    format: Annotated[
        Format | None,
        typer.Option(
            help="text for people (default), json for programs, github for annotations in CI."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check designs without torch: types, tokens, widths, memory. Every error at once."""
    from vlmc.pipeline import load_spec, resolve

    style: Format = "json" if as_json else format or "text"
    missing: list[str] = []
    faults: list[Diagnostic] = []
    sound: list[Arch] = []
    with guarded(style):
        if as_json and format not in (None, "json"):
            raise UsageError(f"--json and --format {format} contradict each other: give one")
        for path in specs:
            try:
                arch = resolve(load_spec(path, overrides or ()))
            except SpecError as error:
                faults.extend(error.diagnostics)
                continue
            except UsageError as error:
                missing.append(str(error))
                continue
            sound.append(arch)
            if style == "text":
                typer.echo(f"{path}: sound. {_summary(arch)}")
        if missing and style == "json":
            document = json.loads(render.as_json(faults))
            typer.echo(json.dumps({**document, "error": "\n".join(missing), "exit": 2}))
            raise typer.Exit(2)
        if missing:
            if faults:
                show(faults, style)
            raise UsageError("\nerror: ".join(missing))
        if faults:
            raise SpecError(faults)
    if style == "json":
        typer.echo(json.dumps({"version": 1, "diagnostics": [], "designs": _designs(sound)}))


def _designs(sound: list[Arch]) -> list[dict[str, object]]:
    return [
        {
            "name": arch.name,
            "parameters": arch.parameters,
            "trainable": arch.trainable_parameters,
            "sequence": arch.tokens.sequence,
            "visual_tokens_per_image": arch.tokens.per_image,
        }
        for arch in sound
    ]


def _summary(arch: Arch) -> str:
    tokens = arch.tokens
    room = "" if tokens.context is None else f" of {tokens.context:,}"
    return (
        f"{count(arch.parameters)} parameters, {count(arch.trainable_parameters)} trainable; "
        f"{tokens.per_image} visual tokens for each image; "
        f"sequence of {tokens.sequence:,}{room} tokens"
    )
