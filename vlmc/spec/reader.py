"""YAML text -> a tree of values with their places, read as YAML 1.2 reads it.

The tree is made from the parser's events, with bounds on size, depth and aliases, so that no file
can exhaust the reader. What leaves the tree whole (a key given twice, a tag) is collected; what
does not (a bracket too few) ends the reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from vlmc.diagnostics import Diagnostic, Span, SpecError
from vlmc.spec.syntax import syntax_error
from vlmc.spec.text import BREAK, read_text, stray_characters
from vlmc.spec.tree import Mapping, Scalar, Sequence, Tree, Value, plain

__all__ = [
    "Document",
    "Mapping",
    "Scalar",
    "Sequence",
    "Tree",
    "parse",
    "plain",
    "read",
    "read_text",
]

MAX_DEPTH = 64
MAX_NODES = 50_000
MAX_FAULTS = 100
MAX_NUMBER = 400
"""Characters of a number; what is longer stays text."""

_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], Value]], ...] = (
    (re.compile(r"[-+]?[0-9]+\Z"), int),
    (re.compile(r"0o[0-7]+\Z"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+\Z"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)\Z"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(nan|NaN|NAN)\Z"), lambda text: float("nan")),
)
"""The forms of a number in the core schema, and how each is read."""
_SPECIAL = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_YAML: Any = yaml
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def core_scalar(text: str) -> Value:
    """A plain scalar by the core schema of YAML 1.2: `1e-5` is a number, `no` is a word."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    if len(text) <= MAX_NUMBER:
        for form, value in _NUMBERS:
            if form.match(text):
                return value(text)
    return text


@dataclass(slots=True)
class Document:
    """A tree, and the faults that left it whole."""

    tree: Tree
    faults: list[Diagnostic] = field(default_factory=list[Diagnostic])


def parse(text: str, file: str) -> Tree:
    """The tree of one YAML document without a fault. Raises SpecError with every fault."""
    document = read(text, file)
    if document.faults:
        raise SpecError(document.faults)
    return document.tree


def read(text: str, file: str) -> Document:
    """One YAML document. Raises SpecError (VLMC001, 2, 5, 6, 7) where no tree can be had."""
    lines = BREAK.split(text)
    stray = stray_characters(text, lines, file)
    if stray:
        raise SpecError(stray)
    builder = _Builder(text, lines, file)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        raise SpecError([syntax_error(error, lines, file)]) from None


class _Builder:
    """Turns events into a tree, counting what it makes."""

    def __init__(self, text: str, lines: list[str], file: str) -> None:
        self.lines = lines
        self.file = file
        self.events: Iterator[Any] = _YAML.parse(text, Loader=_LOADER)
        self.anchors: dict[str, Tree] = {}
        self.sizes: dict[str, int] = {}
        self.count = 0
        self.faults: list[Diagnostic] = []

    def document(self) -> Document:
        next(self.events)  # stream start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            start = Span(file=self.file, line=1, column=1, end_column=2, text=self.lines[0])
            return Document(Mapping({}, start), self.faults)
        tree = self.tree(next(self.events), 1)
        next(self.events)  # document end
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            self.fault(
                "VLMC008",
                "a spec is one YAML document",
                self.span(event),
                expected="one design in a file",
                got="a second document after `---`",
                help="put each design in a file of its own",
            )
        return Document(tree, self.faults)

    def span(self, event: Any) -> Span:
        """The place of an event: its first line, to its end if it ends on that line."""
        start, end = event.start_mark, event.end_mark
        number = int(start.line)
        line = self.lines[number] if number < len(self.lines) else ""
        stop = end.column + 1 if end.line == start.line else len(line) + 1
        return Span(
            file=self.file,
            line=number + 1,
            column=start.column + 1,
            end_column=max(stop, start.column + 2),
            text=line,
        )

    def fault(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        expected: str,
        help: str,
        got: str | None = None,
    ) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(
                Diagnostic(
                    code=code, message=message, span=span, expected=expected, got=got, help=help
                )
            )

    def fatal(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        expected: str,
        help: str,
        got: str | None = None,
    ) -> SpecError:
        last = Diagnostic(
            code=code, message=message, span=span, expected=expected, got=got, help=help
        )
        return SpecError([*self.faults, last])

    def tree(self, event: Any, depth: int) -> Tree:
        span = self.span(event)
        before = self.count
        self.add(1, span)
        if depth > MAX_DEPTH:
            raise self.fatal(
                "VLMC005",
                "the document is nested too deeply",
                span,
                expected=f"at most {MAX_DEPTH} levels",
                got=f"level {depth}",
                help="a spec needs no more than six levels; look for a bracket too many",
            )
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, span)
        if event.tag not in (None, "!"):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.fault(
                "VLMC008",
                f"the tag `{tag[:60]}` has no meaning in a spec",
                span,
                expected="plain words, numbers, lists and mappings",
                got="a tag",
                help="delete the tag",
            )
        result = self.node(event, span, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = result
            self.sizes[event.anchor] = self.count - before
        return result

    def node(self, event: Any, span: Span, depth: int) -> Tree:
        if isinstance(event, yaml.ScalarEvent):
            bare = event.style in (None, "") and event.tag is None
            return Scalar(core_scalar(event.value) if bare else event.value, span, quoted=not bare)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Tree] = []
            while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                items.append(self.tree(item, depth + 1))
            return Sequence(items, span)
        return self.mapping(span, depth)

    def add(self, nodes: int, span: Span) -> None:
        self.count += nodes
        if self.count > MAX_NODES:
            raise self.fatal(
                "VLMC006",
                "the document holds too many values",
                span,
                expected=f"at most {MAX_NODES:,} values, an alias counted as all that it repeats",
                got=f"{self.count:,} up to here",
                help="write the design out without aliases of aliases",
            )

    def alias(self, event: Any, span: Span) -> Tree:
        if event.anchor not in self.anchors:
            raise self.fatal(
                "VLMC002",
                f"the alias `*{event.anchor[:60]}` repeats nothing",
                span,
                expected=f"`&{event.anchor[:60]}` at a value above, which does not hold the alias",
                help="write the value out",
            )
        self.add(self.sizes[event.anchor] - 1, span)
        return self.anchors[event.anchor]

    def mapping(self, span: Span, depth: int) -> Mapping:
        result = Mapping({}, span)
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.tree(event, depth + 1)
            following = next(self.events)
            value = self.tree(following, depth + 1)
            if isinstance(value, Scalar) and following.start_mark.index == following.end_mark.index:
                value.span = key.span  # nothing stands behind the key
            if not isinstance(key, Scalar):
                self.fault(
                    "VLMC008",
                    "a key must be a word",
                    key.span,
                    expected="a word and a colon",
                    got="a list or a mapping as a key",
                    help="write `key: value`",
                )
            elif key.value == "<<" and not key.quoted:
                self.fault(
                    "VLMC008",
                    "merge keys are not part of YAML 1.2",
                    key.span,
                    expected="keys of the language",
                    got="<<",
                    help="`extends: other.yaml` derives one spec from another",
                )
            else:
                self.enter(result, getattr(event, "value", str(key.value)), key.span, value)
        return result

    def enter(self, result: Mapping, name: str, span: Span, value: Tree) -> None:
        if name in result.entries:
            self.fault(
                "VLMC003",
                f"the key `{name[:60]}` is given twice",
                span,
                expected="each key once",
                got=f"first on line {result.keys[name].line}, again on line {span.line}",
                help="delete one of the two",
            )
            return
        result.entries[name] = value
        result.keys[name] = span
