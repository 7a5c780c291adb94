"""What vlmc says of a design: one type, from the rule that finds a fault to every renderer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

Path = tuple[str | int, ...]
"""Where a value stands in a document: mapping keys and list indices from the root."""


class Severity(StrEnum):
    """How grave a diagnostic is: an error stops the compiler, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of one source line. Lines and columns count from 1; `end_column` is exclusive."""

    file: str
    line: int
    column: int
    end_column: int
    text: str = ""
    """The source line itself, without its line break."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A fault as a rule sees it: at a path of the document, before it has a place in a file."""

    code: str
    path: Path
    message: str
    expected: str | None = None
    got: str | None = None
    help: str | None = None
    severity: Severity = Severity.ERROR
    at_key: bool = False
    """Whether the key is at fault (an unknown key) and not the value behind it."""
    related: tuple[Path, ...] = ()
    """Other values that the fault is made of: where the value at `path` is a preset's or a default
    and one of these is written, that one is pointed at."""

    def below(self, *prefix: str | int) -> Problem:
        """The same problem, seen from a document in which `prefix` leads here."""
        return replace(
            self,
            path=(*prefix, *self.path),
            related=tuple((*prefix, *path) for path in self.related),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """A fault with its place: what was expected and got (with the arithmetic), how to mend it."""

    code: str
    message: str
    span: Span
    path: Path = ()
    expected: str | None = None
    got: str | None = None
    help: str | None = None
    severity: Severity = Severity.ERROR


class SpecError(Exception):
    """A design that is wrong. Carries every diagnostic of the run; commands exit with 1."""

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(f"{d.span}: {d.code} {d.message}" for d in self.diagnostics))
