"""What a user sees of a wrong design, whole: on a terminal, as JSON, as GitHub annotations.

To write the files again after a change that is meant: python tests/golden/test_diagnostics.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from vlmc.diagnostics import Diagnostic, Severity, Span, render
from vlmc.resolver import check, flow
from vlmc.spec import load

FOLDER = Path(__file__).parent / "diagnostics"
RENDERED: dict[str, Callable[[Sequence[Diagnostic]], str]] = {
    "terminal.txt": render.terminal,
    "terminal-colour.txt": lambda found: render.terminal(found, color=True),
    "wrong.json": lambda found: json.dumps(json.loads(render.as_json(found)), indent=2),
    "github.txt": render.github,
}


def diagnose() -> list[Diagnostic]:
    former = Path.cwd()
    os.chdir(FOLDER)
    try:
        draft = load(Path("wrong.yaml"))
        return draft.diagnostics(check(flow(draft.sections)))
    finally:
        os.chdir(former)


@pytest.mark.parametrize("name", RENDERED)
def test_rendering(name: str) -> None:
    expected = (FOLDER / name).read_text(encoding="utf-8")
    assert RENDERED[name](diagnose()) + "\n" == expected


def one(message: str, file: str = "spec.yaml", text: str = "a: b") -> Diagnostic:
    span = Span(file=file, line=1, column=4, end_column=5, text=text)
    return Diagnostic(code="VLMC010", message=message, span=span, severity=Severity.WARNING)


def test_annotations_cannot_be_forged() -> None:
    """A line break or a separator in a name would otherwise be a command of its own."""
    lines = render.github([one("a%b\n::error::c\r", file="x,line=9::y%.yaml")]).split("\n")
    assert lines == [
        "::warning file=x%2Cline=9%3A%3Ay%25.yaml,line=1,col=4,endColumn=5,title=VLMC010"
        "::a%25b%0A::error::c%0D"
    ]


def test_a_terminal_obeys_nothing_of_a_file() -> None:
    shown = render.terminal([one("m\x1b]0;t\x07", file="\x1b[2Jx", text="a: \x1b[31mb\u202e")])
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}


def test_json_holds_any_text() -> None:
    found = json.loads(render.as_json([one("\udcff\u2028", file="\udcff")]))
    assert found["version"] == 1
    assert found["diagnostics"][0]["message"] == "\udcff\u2028"
    render.github([one("\udcff")]).encode()
    render.terminal([one("\udcff")]).encode()


def test_nothing_is_rendered_of_nothing() -> None:
    assert render.terminal([]) == ""
    assert json.loads(render.as_json([])) == {"version": 1, "diagnostics": []}
    assert render.github([]) == ""


def test_counts_name_both_severities() -> None:
    error = Diagnostic(code="VLMC101", message="m", span=one("").span)
    shown = render.terminal([error, error, one("w")])
    assert "2 errors and 1 warning found; `vlmc explain VLMC101` says more" in shown


if __name__ == "__main__":
    for name, rendered in RENDERED.items():
        (FOLDER / name).write_text(rendered(diagnose()) + "\n", encoding="utf-8")
