"""The layout of emitted Python: the same bytes on any machine."""

from __future__ import annotations

import subprocess

from ruff import find_ruff_bin

LINE_LENGTH = 100


def formatted(text: str) -> str:
    """The text as ruff formats it, with its imports sorted, unused ones taken out, and no name
    that is bound only to be returned.

    Raises SyntaxError where it is not Python.
    """
    selected = ("--select", "F401,I,RET504", "--fix", "--unsafe-fixes")
    text = _ruff(("check", *selected, "--exit-zero", "--quiet"), text)
    return _ruff(("format",), text)


def _ruff(command: tuple[str, ...], text: str) -> str:
    isolated = ("--isolated", "--no-cache", "--line-length", str(LINE_LENGTH))
    commas = ("format.skip-magic-trailing-comma=true", "lint.isort.split-on-trailing-comma=false")
    options = [part for setting in commas for part in ("--config", setting)]
    done = subprocess.run(
        [find_ruff_bin(), *command, *isolated, *options, "--target-version", "py311", "-"],
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise SyntaxError(f"{done.stderr.decode()}in\n{text}")
    return done.stdout.decode()
