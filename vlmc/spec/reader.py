"""YAML text -> a tree of values with their places, read as YAML 1.2 reads it.

The tree is made from the parser's events, with bounds on size, depth and aliases, so that no file
can exhaust the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from vlmc.diagnostics import Diagnostic, Span, SpecError, UsageError

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_NODES = 50_000

Value = str | int | float | bool | None


@dataclass(slots=True)
class Scalar:
    """A leaf."""

    value: Value
    span: Span
    quoted: bool = False


@dataclass(slots=True)
class Sequence:
    """A list."""

    items: list[Tree]
    span: Span


@dataclass(slots=True)
class Mapping:
    """A mapping; `keys` holds the place of each key."""

    entries: dict[str, Tree]
    span: Span
    keys: dict[str, Span] = field(default_factory=dict[str, Span])


Tree = Scalar | Sequence | Mapping

_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL = re.compile(r"0o[0-7]+\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def core_scalar(text: str) -> Value:
    """A plain scalar by the core schema of YAML 1.2: `1e-5` is a number, `no` is a word."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if len(text) > 400:
        return text
    if _INT.match(text):
        return int(text)
    if _OCTAL.match(text):
        return int(text[2:], 8)
    if _HEX.match(text):
        return int(text[2:], 16)
    if _FLOAT.match(text):
        return float(text)
    if text.lower() in (".inf", "+.inf", "-.inf"):
        return float(text.lower().replace(".", "", 1))
    return float("nan") if text.lower() == ".nan" else text


class _Builder:
    """Turns events into a tree, counting what it makes."""

    def __init__(self, text: str, file: str) -> None:
        self.lines = text.split("\n")
        self.file = file
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.anchors: dict[str, Tree] = {}
        self.sizes: dict[str, int] = {}
        self.count = 0

    def span(self, event: Any) -> Span:
        """The place of an event: its first line, to its end if it ends on that line."""
        start, end = event.start_mark, event.end_mark
        line = self.lines[start.line] if start.line < len(self.lines) else ""
        stop = end.column + 1 if end.line == start.line else len(line.rstrip()) + 1
        return Span(
            file=self.file,
            line=start.line + 1,
            column=start.column + 1,
            end_column=max(stop, start.column + 2),
            text=line.rstrip("\r"),
        )

    def fail(self, code: str, message: str, span: Span, **more: str) -> SpecError:
        return SpecError([Diagnostic(code=code, message=message, span=span, **more)])

    def tree(self, event: Any, depth: int) -> Tree:
        span = self.span(event)
        self.count += 1
        if self.count > MAX_NODES:
            raise self.fail(
                "VLMC006",
                "the document holds too many values",
                span,
                expected=f"at most {MAX_NODES} values, aliases counted each time they are used",
                help="write the design out without aliases of aliases",
            )
        if depth > MAX_DEPTH:
            raise self.fail(
                "VLMC005",
                "the document is nested too deeply",
                span,
                expected=f"at most {MAX_DEPTH} levels",
                help="a spec needs no more than six levels; look for a bracket too many",
            )
        before = self.count
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, span)
        if isinstance(event, yaml.ScalarEvent):
            plain = event.implicit[0] and event.style in (None, "")
            value: Value = core_scalar(event.value) if plain else event.value
            result: Tree = Scalar(value, span, quoted=not plain)
        elif isinstance(event, yaml.SequenceStartEvent):
            items: list[Tree] = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                items.append(self.tree(item, depth + 1))
            result = Sequence(items, span)
        else:
            result = self.mapping(span, depth)
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            self.anchors[anchor] = result
            self.sizes[anchor] = self.count - before + 1
        return result

    def alias(self, event: Any, span: Span) -> Tree:
        if event.anchor not in self.anchors:
            raise self.fail("VLMC002", f"the alias *{event.anchor} has no anchor", span)
        self.count += self.sizes[event.anchor]
        return self.anchors[event.anchor]

    def mapping(self, span: Span, depth: int) -> Mapping:
        result = Mapping({}, span)
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.tree(event, depth + 1)
            value = self.tree(next(self.events), depth + 1)
            if not isinstance(key, Scalar):
                raise self.fail(
                    "VLMC008", "a key must be a word", key.span, got="a list or a mapping as a key"
                )
            name = key.value if isinstance(key.value, str) else str(key.value)
            if name in result.entries:
                first = result.keys[name]
                raise self.fail(
                    "VLMC003",
                    f"the key `{name[:60]}` is given twice",
                    key.span,
                    expected="each key once",
                    got=f"first on line {first.line}, again on line {key.span.line}",
                    help="delete one of the two",
                )
            result.entries[name] = value
            result.keys[name] = key.span
        return result


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: FilePath) -> str:
    """The text of a spec file. Raises UsageError where there is none, SpecError where it is too
    large or not UTF-8."""
    start = Span(file=str(path), line=1, column=1, end_column=2)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a spec file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
    if len(data) > MAX_BYTES:
        size = path.stat().st_size
        raise SpecError(
            [
                Diagnostic(
                    code="VLMC004",
                    message="the file is too large to be a spec",
                    span=start,
                    expected=f"at most {MAX_BYTES:,} bytes",
                    got=f"{size:,} bytes",
                    help="specs describe a design; weights belong into a checkpoint folder",
                )
            ]
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise SpecError(
            [
                Diagnostic(
                    code="VLMC001",
                    message="the file is not UTF-8 text",
                    span=Span(file=str(path), line=line, column=column, end_column=column + 1),
                    expected="UTF-8",
                    got=f"the byte 0x{data[error.start]:02x} at offset {error.start}",
                    help="save the file as UTF-8",
                )
            ]
        ) from None


def parse(text: str, file: str) -> Tree:
    """The tree of one YAML document. Raises SpecError with codes VLMC002, 3, 5, 6 and 8."""
    builder = _Builder(text, file)
    try:
        next(builder.events)  # stream start
        event = next(builder.events)
        if isinstance(event, yaml.StreamEndEvent):
            return Mapping({}, Span(file=file, line=1, column=1, end_column=2))
        tree = builder.tree(next(builder.events), 1)
        next(builder.events)  # document end
        event = next(builder.events)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, builder) from None
    except yaml.YAMLError as error:
        raise _unreadable(error, builder) from None
    if not isinstance(event, yaml.StreamEndEvent):
        raise builder.fail(
            "VLMC002",
            "a spec is one YAML document",
            builder.span(event),
            got="a second document after `---`",
            help="put each design in a file of its own",
        )
    return tree


def _syntax_error(error: yaml.MarkedYAMLError, builder: _Builder) -> SpecError:
    mark = error.problem_mark or error.context_mark
    line = mark.line if mark else 0
    column = mark.column if mark else 0
    text = builder.lines[line] if line < len(builder.lines) else ""
    tab = text[: column + 1].find("\t")
    what = " ".join(part for part in (error.problem, error.context) if part)
    span = Span(
        file=builder.file, line=line + 1, column=column + 1, end_column=column + 2, text=text
    )
    if tab >= 0 or "\\t" in (error.problem or ""):
        return builder.fail(
            "VLMC007",
            "a tab stands where YAML wants spaces",
            span,
            expected="spaces for indentation",
            got="a tab character",
            help="replace each tab by two spaces",
        )
    return builder.fail("VLMC002", f"this is not YAML: {what}", span)


def _unreadable(error: yaml.YAMLError, builder: _Builder) -> SpecError:
    position = getattr(error, "position", None)
    offset = position if isinstance(position, int) else 0
    before = "\n".join(builder.lines)[:offset]
    line = before.count("\n") + 1
    column = offset - (before.rfind("\n") + 1) + 1
    text = builder.lines[line - 1] if line <= len(builder.lines) else ""
    span = Span(file=builder.file, line=line, column=column, end_column=column + 1, text=text)
    return builder.fail(
        "VLMC002",
        "the file holds a character that YAML does not allow",
        span,
        got=str(getattr(error, "reason", error))[:200],
        help="delete control characters",
    )


def plain(tree: Tree) -> Any:
    """The tree as ordinary Python values."""
    if isinstance(tree, Scalar):
        return tree.value
    if isinstance(tree, Sequence):
        return [plain(item) for item in tree.items]
    return {key: plain(value) for key, value in tree.entries.items()}
