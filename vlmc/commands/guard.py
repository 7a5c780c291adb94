"""From exceptions to what a user sees: a sentence or diagnostics, and an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Literal

import typer

from vlmc.diagnostics import Diagnostic, EnvironmentFault, SpecError, UsageError, render

Format = Literal["text", "json", "github"]


def coloured() -> bool:
    """Whether the terminal takes colours (https://no-color.org)."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


@contextmanager
def guarded(style: Format = "text") -> Generator[None]:
    """Ends the command with the exit code of what went wrong: 1 for the design, 2 for the
    command, 3 for the machine. Diagnostics go to stderr as text, to stdout as JSON or GitHub
    annotations."""
    try:
        yield
    except SpecError as error:
        show(error.diagnostics, style)
        raise typer.Exit(1) from None
    except UsageError as error:
        raise _ended(str(error), 2, style) from None
    except EnvironmentFault as error:
        raise _ended(str(error), 3, style) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def show(diagnostics: Iterable[Diagnostic], style: Format) -> None:
    """Prints diagnostics."""
    if style == "json":
        typer.echo(render.as_json(diagnostics))
    elif style == "github":
        typer.echo(render.github(diagnostics))
    else:
        typer.echo(render.terminal(diagnostics, color=coloured()), err=True)


def _ended(sentence: str, code: int, style: Format) -> typer.Exit:
    if style == "json":
        typer.echo(json.dumps({"version": render.JSON_VERSION, "error": sentence, "exit": code}))
    else:
        typer.echo(f"error: {sentence}", err=True)
    return typer.Exit(code)
