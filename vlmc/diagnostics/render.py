"""Diagnostics for people at a terminal, for programs, and for GitHub's review of a change."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable

from vlmc.diagnostics.diagnostic import Diagnostic, Severity, Span

JSON_VERSION = 1
"""Version of the JSON form; it changes where a key goes or changes its meaning."""

MAX_COLUMNS = 100
"""Columns of a source line that are shown; a longer one is cut around the fault."""

TAB = 4
_COLOURS = {"error": "1;31", "warning": "1;33", "frame": "34", "help": "1;32", "bold": "1"}


def terminal(diagnostics: Iterable[Diagnostic], *, color: bool = False) -> str:
    """Each diagnostic with its source line and a caret, and their count at the end."""
    found = list(diagnostics)
    counts: list[str] = []
    for severity in Severity:
        count = sum(d.severity == severity for d in found)
        if count:
            counts.append(f"{count} {severity}{'s' if count > 1 else ''}")
    blocks = [_block(diagnostic, color) for diagnostic in found]
    if not counts:
        return ""
    hint = f"`vlmc explain {found[0].code}` says more"
    return "\n\n".join([*blocks, f"{' and '.join(counts)} found; {hint}"])


def as_json(diagnostics: Iterable[Diagnostic]) -> str:
    """A JSON object: `version`, and `diagnostics` with a place for each. Columns count characters
    from 1; `end_column` is exclusive."""
    return json.dumps({"version": JSON_VERSION, "diagnostics": [_record(d) for d in diagnostics]})


def github(diagnostics: Iterable[Diagnostic]) -> str:
    """A workflow command for each diagnostic, which GitHub shows at the line."""
    lines: list[str] = []
    for diagnostic in diagnostics:
        span = diagnostic.span
        properties = {
            "file": span.file,
            "line": str(span.line),
            "col": str(span.column),
            "endColumn": str(span.end_column),
            "title": diagnostic.code,
        }
        fields = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
        body = "\n".join([diagnostic.message, *(f"{k}: {v}" for k, v in _details(diagnostic))])
        lines.append(f"::{diagnostic.severity} {fields}::{_data(body)}")
    return "\n".join(lines)


def _details(diagnostic: Diagnostic) -> list[tuple[str, str]]:
    """What is known beside the message, in the order in which it is read."""
    known = (
        ("expected", diagnostic.expected),
        ("got", diagnostic.got),
        ("help", diagnostic.help),
    )
    return [(name, text) for name, text in known if text]


def _block(diagnostic: Diagnostic, color: bool) -> str:
    span, severity = diagnostic.span, diagnostic.severity.value
    number = str(span.line)
    gutter = " " * len(number)
    bar = _paint("|", "frame", color)
    heading = _paint(f"{severity}[{diagnostic.code}]", severity, color)
    arrow = _paint(f"{gutter}-->", "frame", color)
    lines = [
        f"{heading}: {_paint(_visible(diagnostic.message), 'bold', color)}",
        f"{arrow} {_visible(str(span))}",
    ]
    if span.text.strip():
        shown, before, width = excerpt(span)
        caret = _paint("^" * width, severity, color)
        lines += [
            f"{gutter} {bar}",
            f"{_paint(number, 'frame', color)} {bar} {shown}",
            f"{gutter} {bar} {' ' * before}{caret}",
        ]
    equals = _paint("=", "frame", color)
    for name, text in _details(diagnostic):
        label = _paint(f"{name}:", "help" if name == "help" else "bold", color)
        lines.append(f"{gutter} {equals} {label} {_visible(text)}")
    return "\n".join(lines)


def excerpt(span: Span) -> tuple[str, int, int]:
    """The source line as a terminal shows it, the cells before the fault, and the fault's cells.

    Tabs are widened, wide characters count two cells and combining ones none; of a line longer
    than MAX_COLUMNS the stretch around the fault is shown.
    """
    text = span.text
    start = min(max(span.column - 1, 0), len(text))
    stop = min(max(span.end_column - 1, start + 1), start + MAX_COLUMNS)
    first = max(0, start - MAX_COLUMNS // 2) if stop > MAX_COLUMNS else 0
    last = first + MAX_COLUMNS
    lead = "..." if first else ""
    trail = "..." if last < len(text) else ""
    before, indent = _cells(text[first:start])
    fault, width = _cells(text[start : min(stop, last)])
    after, _ = _cells(text[min(stop, last) : last].rstrip())
    return f"{lead}{before}{fault}{after}{trail}", len(lead) + indent, max(1, width)


def _cells(text: str) -> tuple[str, int]:
    """`text` without what would move the cursor, and the cells that it fills."""
    shown: list[str] = []
    width = 0
    for character in text:
        if character == "\t":
            shown.append(" " * TAB)
            width += TAB
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            shown.append("\ufffd")
            width += 1
        else:
            shown.append(character)
            if not unicodedata.combining(character):
                width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
    return "".join(shown), width


def _visible(text: str) -> str:
    """`text` on one line, without what a terminal would obey."""
    return _cells(" ".join(text.splitlines()) or text)[0]


def _paint(text: str, role: str, color: bool) -> str:
    return f"\x1b[{_COLOURS[role]}m{text}\x1b[0m" if color else text


def _record(diagnostic: Diagnostic) -> dict[str, object]:
    span = diagnostic.span
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity.value,
        "message": diagnostic.message,
        "file": span.file,
        "line": span.line,
        "column": span.column,
        "end_column": span.end_column,
        "path": list(diagnostic.path),
        "expected": diagnostic.expected,
        "got": diagnostic.got,
        "help": diagnostic.help,
        "source": span.text[: 10 * MAX_COLUMNS],
    }


def _data(text: str) -> str:
    """Escaped for the body of a workflow command."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escaped for a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
