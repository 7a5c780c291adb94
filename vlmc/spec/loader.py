"""From a spec file to a `Draft`: what it extends below, overrides on top."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path as FilePath

from vlmc.diagnostics import Diagnostic, Span, SpecError, UsageError
from vlmc.spec.draft import Draft, draft
from vlmc.spec.merge import derive, moved
from vlmc.spec.reader import Document, parse, read, read_text
from vlmc.spec.tree import Mapping, Scalar, Tree

__all__ = ["Draft", "draft", "load"]

MAX_EXTENDS = 16


def load(path: FilePath, overrides: Iterable[str] = ()) -> Draft:
    """The draft of a spec file with `key.path=value` overrides on top.

    Raises SpecError where the text cannot be read as YAML at all, UsageError where there is no
    such file or an override is malformed.
    """
    document = _extended(path, ())
    tree = document.tree
    for override in overrides:
        tree = derive(tree, _override(override))
    return draft(tree, str(path), default_name=path.stem, faults=document.faults)


def _extended(path: FilePath, chain: tuple[str, ...]) -> Document:
    """The document of a file, laid over what it extends."""
    document = read(read_text(path), str(path))
    tree = document.tree
    if not isinstance(tree, Mapping) or "extends" not in tree.entries:
        return document
    base = tree.entries["extends"]
    if not isinstance(base, Scalar) or not isinstance(base.value, str) or not base.value.strip():
        fault = _fault(base.span, "`extends` names one spec file", "no path")
        raise SpecError([*document.faults, fault])
    try:
        below = _base(path, base.value, chain)
    except UsageError as error:
        fault = _fault(base.span, str(error), base.value[:200])
        raise SpecError([*document.faults, fault]) from None
    except SpecError as error:
        raise SpecError([*document.faults, *error.diagnostics]) from None
    if isinstance(below.tree, Mapping):
        below.tree.entries.pop("name", None)  # a derived design is called after its own file
    return Document(derive(below.tree, tree), [*document.faults, *below.faults])


def _base(path: FilePath, word: str, chain: tuple[str, ...]) -> Document:
    """The document that `path` extends. Raises UsageError where there is none."""
    here = (*chain, os.path.realpath(path))
    target = path.parent / word
    try:
        real = os.path.realpath(target)
    except ValueError as error:
        raise UsageError(f"`extends` leads nowhere: {error}") from None
    if real in here:
        names = [os.path.basename(file) for file in (*here[here.index(real) :], real)]
        raise UsageError(f"the specs extend each other in a circle: {' -> '.join(names)}")
    if len(here) > MAX_EXTENDS:
        raise UsageError(f"more than {MAX_EXTENDS} specs extend each other")
    try:
        return _extended(target, here)
    except UsageError as error:
        raise UsageError(f"`extends` leads nowhere: {error}") from None


def _fault(span: Span, message: str, got: str) -> Diagnostic:
    return Diagnostic(
        code="VLMC016",
        message=message,
        span=span,
        path=("extends",),
        expected="the path of another spec, relative to this one",
        got=got,
        help="extends: base.yaml",
    )


def _override(text: str) -> Tree:
    """`a.b=value` as a tree that stands in the override itself.

    Raises UsageError where it is not of that form, SpecError where the value is not YAML.
    """
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise UsageError(f"--set {text[:200]!r}: write key.path=value, such as adapter.queries=32")
    if keys[0] == "extends":
        raise UsageError(f"--set {text[:200]!r}: `extends` stands in the spec file itself")
    if any(key.isdigit() for key in keys):
        raise UsageError(
            f"--set {text[:200]!r}: a list is replaced whole, "
            "such as encoder.features.layer=[-2, -1]"
        )
    try:
        tree = parse(value, "--set")
    except SpecError as error:
        shift = len(path) + 1
        raise SpecError(_shifted(d, text, shift) for d in error.diagnostics) from None
    if isinstance(tree, Mapping) and not tree.entries and not value.strip().startswith("{"):
        tree = Scalar(None, tree.span)
    span = Span(file="--set", line=1, column=1, end_column=len(text) + 1, text=text)
    tree = moved(tree, replace(span, column=len(path) + 2))
    named = replace(span, end_column=len(path) + 1)
    for key in reversed(keys):
        tree = Mapping({key: tree}, span, {key: named})
    return tree


def _shifted(diagnostic: Diagnostic, text: str, shift: int) -> Diagnostic:
    """A diagnostic of an override's value, placed in the whole override."""
    span = diagnostic.span
    if span.line > 1:
        return diagnostic
    moved_span = replace(
        span, column=span.column + shift, end_column=span.end_column + shift, text=text
    )
    return replace(diagnostic, span=moved_span)
