"""`vlmc schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vlmc.commands.guard import guarded
from vlmc.diagnostics import EnvironmentFault


def schema(
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Print the JSON Schema of the language, for completion and checks in an editor."""
    from vlmc.spec.schema import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    with guarded():
        if output is None:
            typer.echo(text, nl=False)
            return
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise EnvironmentFault(f"{output}: cannot be written: {error.strerror}") from None
        typer.echo(f"wrote {output}")
