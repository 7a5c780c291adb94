"""From a spec file to a `Draft`: every section typed, every fault of the file collected."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, cast

from vlmc.components.catalog import kinds
from vlmc.components.contract import ComponentSpec
from vlmc.diagnostics import Diagnostic, Problem, Span, SpecError, UsageError
from vlmc.diagnostics.nearest import listing, suggestion
from vlmc.ir import Role
from vlmc.spec import presets
from vlmc.spec.document import SCHEMA_VERSION, ModelSpec, Target, TokenBudget, Training
from vlmc.spec.merge import moved, overlay
from vlmc.spec.reader import Mapping, Scalar, Tree, parse, plain, read_text
from vlmc.spec.source import SourceMap
from vlmc.spec.validate import bad_word, not_yet, planned, unknown_key, validate

COMPONENTS: tuple[Role, ...] = ("encoder", "adapter", "fusion", "language", "head")
SECTIONS = {"token_budget": TokenBudget, "target": Target, "training": Training}
HEADINGS = ("schema", "name", "about", "extends", *COMPONENTS, *SECTIONS)
DEFAULT_KINDS = {"encoder": "vit", "language": "decoder", "adapter": "identity"}
MAX_EXTENDS = 16


@dataclass(slots=True)
class Draft:
    """A spec file as far as it could be read. A section with problems is missing from `sections`."""

    source: SourceMap
    file: str
    sections: dict[str, Any] = field(default_factory=dict[str, Any])
    problems: list[Problem] = field(default_factory=list[Problem])

    @property
    def complete(self) -> bool:
        """Whether nothing is wrong so far, so that `spec` can be had."""
        return not any(problem.severity == "error" for problem in self.problems)

    def spec(self) -> ModelSpec:
        """The whole design. The draft must be complete."""
        spec = ModelSpec(**self.sections)
        spec.place(self.source)
        return spec

    def diagnostics(self, more: Iterable[Problem] = ()) -> list[Diagnostic]:
        """Every problem with its place, in the order of the file."""
        found = [self.source.locate(problem) for problem in (*self.problems, *more)]
        return sorted(
            dict.fromkeys(found),
            key=lambda d: (d.span.file != self.file, d.span.file, d.span.line, d.span.column),
        )


def load(path: FilePath, overrides: Iterable[str] = ()) -> Draft:
    """The draft of a spec file with `key.path=value` overrides on top.

    Raises SpecError where the text cannot be read as YAML at all, UsageError where there is no
    such file or an override is malformed.
    """
    tree = _extended(path, ())
    for override in overrides:
        tree = overlay(tree, _override(override))
    return draft(tree, str(path), default_name=path.stem)


def draft(tree: Tree, file: str, *, default_name: str) -> Draft:
    """The draft of a tree."""
    if not isinstance(tree, Mapping):
        problem = Problem(
            code="VLMC008",
            path=(),
            message="a spec is a mapping of sections",
            expected="keys such as encoder, adapter, fusion and language",
            got="a list" if not isinstance(tree, Scalar) else f"the value {tree.value!r}"[:80],
        )
        return Draft(SourceMap(tree), file, problems=[problem])
    result = Draft(SourceMap(tree), file)
    _headings(tree, result, default_name)
    expanded = Mapping(dict(tree.entries), tree.span, dict(tree.keys))
    for role in COMPONENTS:
        section = _component(role, tree, result)
        if section is not None:
            expanded.entries[role] = section
            expanded.keys.setdefault(role, section.span)
    result.source = SourceMap(expanded)
    for name, model in SECTIONS.items():
        if name in tree.entries:
            value, problems = validate(model, plain(tree.entries[name]), (name,))
            result.problems.extend(problems)
            if value is not None:
                result.sections[name] = value
    return result


def _extended(path: FilePath, chain: tuple[FilePath, ...]) -> Tree:
    """The tree of a file, laid over what it extends."""
    tree = parse(read_text(path), str(path))
    if not isinstance(tree, Mapping) or "extends" not in tree.entries:
        return tree
    base = tree.entries["extends"]
    here = (*chain, path.resolve())
    if not isinstance(base, Scalar) or not isinstance(base.value, str):
        raise _extends_error(base.span, "`extends` names one spec file", "a path in quotes")
    target = path.parent / base.value
    if target.resolve() in here or len(here) > MAX_EXTENDS:
        raise _extends_error(base.span, "the specs extend each other in a circle", str(target))
    try:
        below = _extended(target, here)
    except UsageError as error:
        raise _extends_error(base.span, f"`extends` leads nowhere: {error}", base.value) from None
    return overlay(below, tree)


def _extends_error(span: Span, message: str, got: str) -> SpecError:
    return SpecError(
        [
            Diagnostic(
                code="VLMC016",
                message=message,
                span=span,
                path=("extends",),
                expected="the path of another spec, relative to this one",
                got=got,
            )
        ]
    )


def _override(text: str) -> Tree:
    """`a.b=value` as a tree."""
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UsageError(f"--set {text!r}: write key.path=value, such as adapter.queries=32")
    tree = parse(value, "--set")
    if isinstance(tree, Mapping) and not tree.entries and not value.strip():
        tree = Scalar(None, tree.span)
    span = Span(file=f"--set {path}", line=1, column=1, end_column=len(text) + 1, text=text)
    tree = moved(tree, span)
    for key in reversed(keys):
        tree = Mapping({key: tree}, span, {key: span})
    return tree


def _headings(tree: Mapping, result: Draft, default_name: str) -> None:
    for key in tree.entries:
        if key not in HEADINGS:
            result.problems.append(unknown_key((key,), HEADINGS))
    version = tree.entries.get("schema")
    if version is not None and plain(version) != SCHEMA_VERSION:
        result.problems.append(
            Problem(
                code="VLMC017",
                path=("schema",),
                message="this vlmc does not read that version of the language",
                expected=str(SCHEMA_VERSION),
                got=str(plain(version))[:60],
                help=f"schema: {SCHEMA_VERSION}",
            )
        )
    for key, default in (("name", default_name), ("about", "")):
        value = plain(tree.entries[key]) if key in tree.entries else default
        if not isinstance(value, str):
            result.problems.append(
                Problem(
                    code="VLMC011",
                    path=(key,),
                    message=f"`{key}` has the wrong type",
                    expected="text",
                    got=str(value)[:60],
                    help=f'{key}: "{str(value)[:60]}"',
                )
            )
        else:
            result.sections[key] = value


def _component(role: Role, document: Mapping, result: Draft) -> Mapping | None:
    """Types one component into `result`; returns its tree with preset and kind filled in."""
    tree = document.entries.get(role)
    if tree is None or (isinstance(tree, Scalar) and tree.value is None):
        tree = Mapping({}, document.keys.get(role, document.span))
        if role in ("encoder", "language"):
            result.problems.append(
                Problem(
                    code="VLMC013",
                    path=(role,),
                    message=f"the spec needs the section `{role}`",
                    expected=f"a preset ({listing('', presets.names(role))}) or fields",
                    got="nothing",
                    help=f"{role}: {presets.names(role)[0]}",
                )
            )
            return None
    if isinstance(tree, Scalar):
        tree = _spelled_out(role, tree, result)
    if not isinstance(tree, Mapping):
        if tree is not None:
            result.problems.append(
                Problem(
                    code="VLMC011",
                    path=(role,),
                    message=f"`{role}` has the wrong type",
                    expected="a mapping of fields, or one word",
                    got="a list",
                )
            )
        return None
    tree = _with_preset(role, tree, result)
    if tree is None:
        return None
    kind = _kind(role, tree, result)
    if kind is None:
        return tree
    data = plain(tree)
    data.pop("preset", None)
    data["kind"] = kind
    value, problems = validate(kinds(role)[kind].spec, data, (role,))
    result.problems.extend(problems)
    if value is not None:
        result.sections[role] = value
        result.problems.extend(p.below(role) for p in cast(ComponentSpec, value).problems())
    return tree


def _spelled_out(role: Role, tree: Scalar, result: Draft) -> Mapping | None:
    """One word in place of a mapping: a preset, a kind, or a fusion point."""
    word = str(tree.value)
    valid = [*presets.names(role), *kinds(role), *(("early", "mid", "late") * (role == "fusion"))]
    if word in presets.names(role):
        key = "preset"
    elif role == "fusion" and word in ("early", "mid", "late"):
        key = "point"
    elif word in valid or word in planned()["kinds"].get(role, {}):
        key = "kind"
    else:
        result.problems.append(_unknown_name(role, (role,), word, valid))
        return None
    return Mapping({key: Scalar(word, tree.span)}, tree.span, {key: tree.span})


def _unknown_name(role: Role, path: tuple[str, ...], word: str, valid: list[str]) -> Problem:
    near = suggestion(word, valid)
    return Problem(
        code="VLMC014" if path[-1] == "preset" else "VLMC015",
        path=path,
        message=f"unknown {path[-1]} `{word[:60]}`",
        expected=listing(word, valid),
        got=word[:60],
        help=f"{path[-1]}: {near}" if near else None,
    )


def _with_preset(role: Role, tree: Mapping, result: Draft) -> Mapping | None:
    if "preset" not in tree.entries:
        return tree
    name = plain(tree.entries["preset"])
    valid = list(presets.names(role))
    if not valid:
        result.problems.append(unknown_key((role, "preset"), ["kind"]))
        return None
    if not isinstance(name, str) or name not in valid:
        result.problems.append(_unknown_name(role, (role, "preset"), str(name), valid))
        return None
    span = tree.entries["preset"].span
    base = Mapping(
        {key: moved(value, span) for key, value in presets.values(role, name).items()}, span
    )
    base.keys = dict.fromkeys(base.entries, span)
    return cast(Mapping, overlay(base, tree))


def _kind(role: Role, tree: Mapping, result: Draft) -> str | None:
    valid = kinds(role)
    if "kind" in tree.entries:
        word = plain(tree.entries["kind"])
        about = planned()["kinds"].get(role, {}).get(word) if isinstance(word, str) else None
        if about is not None:
            result.problems.append(not_yet((role, "kind"), f"the {role} `{word}`", about))
            return None
        if not isinstance(word, str) or word not in valid:
            result.problems.append(_unknown_name(role, (role, "kind"), str(word), list(valid)))
            return None
        return word
    if role == "fusion":
        point = plain(tree.entries["point"]) if "point" in tree.entries else "late"
        for kind, entry in valid.items():
            if getattr(entry.spec, "points", ("",))[0] == point:
                return kind
        result.problems.append(bad_word(("fusion", "point"), str(point), ("early", "mid", "late")))
        return None
    if role == "head":
        language = result.sections.get("language")
        architecture = "decoder" if language is None else language.architecture
        for kind, entry in valid.items():
            if architecture in getattr(entry.spec, "architectures", ()):
                return kind
    return DEFAULT_KINDS[role]
