"""`vlmc explain`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vlmc.commands.guard import guarded
from vlmc.commands.options import Json
from vlmc.diagnostics import codes


def explain(
    code: Annotated[
        str | None,
        typer.Argument(help="A diagnostic's code, such as VLMC101.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why a diagnostic is raised, with a bad and a good example; without a code, list all."""
    with guarded("json" if as_json else "text"):
        if code is None:
            titles = codes.titles()
            if as_json:
                typer.echo(json.dumps(titles))
            else:
                for name, title in titles.items():
                    typer.echo(f"{name}  {title}")
            return
        name = codes.named(code)
        page = codes.pages()[name]
        typer.echo(json.dumps({"code": name, "page": page}) if as_json else page)
