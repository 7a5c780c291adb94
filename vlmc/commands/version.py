"""`vlmc --version`."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmc import __version__


def _print(asked: bool) -> None:
    if asked:
        typer.echo(f"vlmc {__version__}")
        raise typer.Exit


def version(
    show: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Compiles a YAML description of a vision-language model into a runnable model."""
