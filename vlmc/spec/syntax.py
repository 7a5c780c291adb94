"""From the YAML parser's complaints to diagnostics that say what to write."""

from __future__ import annotations

import yaml

from vlmc.diagnostics import Diagnostic, Span

HELP = (
    ("mapping values are not allowed", "indent this line like its neighbours, or quote the value"),
    ("did not find expected key", "indent this line like the keys beside it"),
    ("did not find expected '-'", "begin each entry of the list with `- `, all equally indented"),
    ("did not find expected ',' or ']'", "close the list with `]`, or put a comma"),
    ("did not find expected ',' or '}'", "close the mapping with `}`, or put a comma"),
    ("could not find expected ':'", "write `key: value`, with a space after the colon"),
    ("cannot start any token", "quote a value that begins with one of @ ` % &"),
    ("unexpected end of stream", "close the quotation mark"),
    ("unknown escape character", "use single quotes, or double the backslash"),
    ("block sequence entries are not allowed", "put the list on lines of its own below the key"),
    ("did not find expected node content", "a comma or a bracket stands where a value should"),
)
"""What to do, by the words of the parser."""


def syntax_error(error: yaml.MarkedYAMLError, lines: list[str], file: str) -> Diagnostic:
    """The diagnostic of a text that is not YAML: VLMC007 where a tab is to blame, VLMC002."""
    mark = error.problem_mark or error.context_mark
    line = min(mark.line, len(lines) - 1) if mark else 0
    text = lines[line]
    column = min(mark.column, len(text)) if mark else 0
    problem = error.problem or "it ends too early"
    indent = text[: len(text) - len(text.lstrip())]
    if "\t" in indent or text[column : column + 1] == "\t" or "tab character" in problem:
        column = max(text.find("\t"), 0)
        return Diagnostic(
            code="VLMC007",
            message="a tab stands where YAML wants spaces",
            span=_span(file, line, column, text),
            expected="spaces for indentation",
            got="a tab character",
            help="replace each tab by two spaces",
        )
    begun = error.context_mark
    where = f" that begins on line {begun.line + 1}" if begun and begun.line != line else ""
    return Diagnostic(
        code="VLMC002",
        message=f"this is not YAML: {problem}"
        + (f" {error.context}{where}" if error.context else ""),
        span=_span(file, line, column, text),
        expected="well-formed YAML",
        got=problem,
        help=next((advice for words, advice in HELP if words in problem), None),
    )


def _span(file: str, line: int, column: int, text: str) -> Span:
    return Span(file=file, line=line + 1, column=column + 1, end_column=column + 2, text=text)
