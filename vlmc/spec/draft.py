"""From a document to a `Draft`: every section typed, every fault of the file collected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from vlmc.diagnostics import Diagnostic, Problem, Severity
from vlmc.spec.component import component
from vlmc.spec.document import (
    ARTIFACTS,
    SCHEMA_VERSION,
    ModelSpec,
    Outputs,
    Target,
    TokenBudget,
    Training,
)
from vlmc.spec.merge import COMPONENTS, spelled_out
from vlmc.spec.problems import unknown_key, wrong_type
from vlmc.spec.source import SourceMap
from vlmc.spec.tree import Mapping, Scalar, Sequence, Tree, plain
from vlmc.spec.validate import validate

SECTIONS = {"token_budget": TokenBudget, "target": Target, "training": Training}
HEADINGS = ("schema", "name", "about", "extends", *COMPONENTS, *SECTIONS, "artifacts")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}\Z")
"""What a design may be called."""


@dataclass(slots=True)
class Draft:
    """A spec file as far as it could be read.

    A section whose problems say how to mend them stands in `sections` as it would be then, so that
    the rules can be tried on it; one whose problems do not is missing.
    """

    source: SourceMap
    file: str
    sections: dict[str, Any] = field(default_factory=dict[str, Any])
    problems: list[Problem] = field(default_factory=list[Problem])
    faults: list[Diagnostic] = field(default_factory=list[Diagnostic])
    """Faults of the text itself, such as a key given twice."""

    @property
    def complete(self) -> bool:
        """Whether nothing is wrong so far, so that `spec` can be had."""
        return not self.faults and not any(p.severity == Severity.ERROR for p in self.problems)

    def spec(self) -> ModelSpec:
        """The whole design. The draft must be complete."""
        assert self.complete
        spec = ModelSpec.model_construct(**self.sections)  # each is validated already
        spec.place(self.source)
        return spec

    def diagnostics(self, more: Iterable[Problem] = ()) -> list[Diagnostic]:
        """Every fault with its place, in the order of the file; of `more`, what the rules found,
        those whose value is not at fault already."""
        known = {problem.path for problem in self.problems}
        new = [problem for problem in more if problem.path not in known]
        located = (self.source.locate(problem) for problem in (*self.problems, *new))
        return sorted(
            dict.fromkeys((*self.faults, *located)),
            key=lambda d: (d.span.file != self.file, d.span.file, d.span.line, d.span.column),
        )


def draft(tree: Tree, file: str, *, default_name: str, faults: Iterable[Diagnostic] = ()) -> Draft:
    """The draft of a tree."""
    result = Draft(SourceMap(tree), file, faults=list(faults))
    if not isinstance(tree, Mapping):
        result.problems.append(
            Problem(
                code="VLMC008",
                path=(),
                message="a spec is a mapping of sections",
                expected="keys such as encoder, adapter, fusion and language",
                got="a list" if isinstance(tree, Sequence) else f"the value {tree.value!r}"[:80],
                help="begin with `encoder: ...`",
            )
        )
        return result
    _headings(tree, result, default_name)
    expanded = Mapping(dict(tree.entries), tree.span, dict(tree.keys))
    for role in COMPONENTS:
        section = component(role, tree, result)
        if section is not None:
            expanded.entries[role] = section
            expanded.keys.setdefault(role, section.span)
    result.source = SourceMap(expanded)
    for name, model in SECTIONS.items():
        section = tree.entries.get(name)
        if section is None or (isinstance(section, Scalar) and section.value is None):
            continue
        if isinstance(section, Scalar):
            expanded.entries[name] = section = spelled_out(name, section)
        value, problems = validate(model, plain(section), (name,))
        result.problems.extend(problems)
        if value is not None:
            result.sections[name] = value
    _artifacts(tree, result)
    return result


def _artifacts(tree: Mapping, result: Draft) -> None:
    """What the build makes, in the order in which it is made, `model` among it."""
    words = plain(tree.entries["artifacts"]) if "artifacts" in tree.entries else None
    if words is None:
        return
    value, problems = validate(Outputs, {"artifacts": words}, ())
    result.problems.extend(problems)
    given = cast("list[object]", words) if isinstance(words, list) else []
    for index, word in enumerate(given):
        if word in given[:index]:
            result.problems.append(
                Problem(
                    code="VLMC012",
                    path=("artifacts", index),
                    message=f"`artifacts` names {str(word)[:60]!r} twice",
                    expected="each artifact once",
                    got=str(word)[:60],
                    help="remove it",
                )
            )
    if value is not None:
        wanted = {"model", *value.artifacts}
        result.sections["artifacts"] = tuple(name for name in ARTIFACTS if name in wanted)


def _headings(tree: Mapping, result: Draft, default_name: str) -> None:
    for key in tree.entries:
        if key not in HEADINGS:
            result.problems.append(unknown_key((key,), HEADINGS, plain(tree.entries[key])))
    version: object = plain(tree.entries["schema"]) if "schema" in tree.entries else SCHEMA_VERSION
    if type(version) is not int or version != SCHEMA_VERSION:
        result.problems.append(
            Problem(
                code="VLMC017",
                path=("schema",),
                message="this vlmc does not read that version of the language",
                expected=str(SCHEMA_VERSION),
                got=str(version)[:60],
                help=f"schema: {SCHEMA_VERSION}",
            )
        )
    fallback = re.sub(r"[^A-Za-z0-9._+-]|^[^A-Za-z0-9]", "-", default_name).lstrip("-._+")[:100]
    for key, default in (("name", fallback or "design"), ("about", "")):
        value: object = plain(tree.entries[key]) if key in tree.entries else default
        if not isinstance(value, str):
            text = str(value).lower() if isinstance(value, bool) else str(value)
            said = isinstance(value, int | float)
            help_ = f'{key}: "{text[:100] if said else default}"'
            result.problems.append(wrong_type((key,), "text", value, help_))
        elif key == "name" and not NAME.match(value):
            result.problems.append(
                Problem(
                    code="VLMC012",
                    path=("name",),
                    message="`name` names a folder",
                    expected="letters, digits and . _ + -, a letter or a digit first, at most 100",
                    got=repr(value[:60]),
                    help=f"name: {fallback or 'design'}",
                )
            )
        else:
            result.sections[key] = value
