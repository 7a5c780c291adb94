"""What a call asks for, and the line of a shell that asks for the same.

Options come from Python or from the command line; what they mean here needs no file of a design.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from vlmc.diagnostics import UsageError
from vlmc.diagnostics.nearest import listing
from vlmc.spec.document import ARTIFACTS
from vlmc.spec.problems import planned

RESOLVED = "spec.resolved.yaml"


def path_of(path: object) -> Path:
    """The path of a spec file or a build folder. Raises UsageError for what names no file."""
    if not isinstance(path, str | os.PathLike):
        given = "None" if path is None else f"a value of type {type(path).__name__}"
        raise UsageError(f"{given} is no path: name a spec file or a build folder")
    return Path(cast("str | os.PathLike[str]", path))


def spec_file(path: object) -> Path:
    """The spec file at a path, or in the build folder there. Raises UsageError for another folder,
    and as `path_of`."""
    found = path_of(path)
    if not found.is_dir():
        return found
    if not (found / RESOLVED).exists():
        raise UsageError(
            f"{found} is a folder, but no build: there is no {RESOLVED} in it; name a spec file"
        )
    return found / RESOLVED


def listed(given: Iterable[str]) -> tuple[str, ...]:
    """The overrides as a tuple. Raises UsageError for a single text, whose characters would pass
    for overrides."""
    if isinstance(given, str):
        raise UsageError(f"overrides are a list of texts, such as [{given[:60]!r}], and not a text")
    return tuple(given)


def wanted(given: Iterable[str] | None) -> tuple[str, ...]:
    """The artifacts that a call asks for, as an override. Raises UsageError for an unknown one."""
    if given is None:
        return ()
    words = [given] if isinstance(given, str) else list(given)
    for word in words:
        if word in ARTIFACTS:
            continue
        about = planned()["words"]["artifacts"].get(word)
        why = f"this release cannot make it ({about})" if about else "there is no such artifact"
        raise UsageError(
            f"--artifacts {word[:60]}: {why}; {listing(word, ARTIFACTS)} is expected, several of "
            "them with commas between"
        )
    kept = {"model", *words}
    return (f"artifacts=[{','.join(name for name in ARTIFACTS if name in kept)}]",)


def check_compatible(mini: bool, checkpoint: str | Path | None, seed: int | None) -> None:
    """Raises UsageError where options contradict each other, or a checkpoint is no folder."""
    if checkpoint is None:
        return
    if mini:
        raise UsageError(
            "--mini builds the laptop-size twin with seeded weights, --checkpoint the design "
            "itself with published ones: give one of them"
        )
    if seed is not None:
        raise UsageError(
            "--seed draws the weights, --checkpoint brings published ones: give one of them"
        )
    if not Path(checkpoint).is_dir():
        raise UsageError(f"{checkpoint}: there is no such folder")


def command(path: str | Path, overrides: Iterable[str], *, mini: bool = False) -> str:
    """The line of a shell that builds a spec file where builds go by default."""
    twin = ["--mini"] if mini else []
    return " ".join(["vlmc build", shlex.quote(str(path)), *twin, *as_options(overrides)])


def to_folder(output: str | Path | None) -> str:
    """What follows such a line where the build goes elsewhere."""
    return "" if output is None else f" --output {shlex.quote(str(output))}"


def as_options(overrides: Iterable[str]) -> list[str]:
    """Overrides as options in a line of a shell."""
    return [f"--set {_quoted(override)}" for override in overrides]


def _quoted(word: str) -> str:
    """A word for a shell, without line breaks: a command stands in a comment, too."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = word.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else rf"\U{ord(c):08x}" for c in escaped) + "'"


def origin(path: Path) -> str:
    """The spec file for a command that stands in committed text: as it is called within a checkout,
    and nothing of where that is."""
    absolute = path.absolute()
    name = shlex.quote("".join(c if c.isprintable() else "?" for c in absolute.name))
    return f"specs/{name}" if absolute.parent.name == "specs" else name
