"""From pydantic's errors to vlmc's problems."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.nearest import suggestion
from vlmc.spec.problems import (
    bad_word,
    dotted,
    name_of,
    not_yet,
    planned,
    shown,
    unknown_key,
    wrong_type,
)
from vlmc.spec.reader import MAX_NUMBER
from vlmc.spec.repair import repaired

Model = TypeVar("Model", bound=BaseModel)
Error = Mapping[str, Any]

MAX_PROBLEMS = 100
"""Problems that are reported of one section."""

_YAML_1_1 = {
    **dict.fromkeys(("yes", "on", "y"), "true"),
    **dict.fromkeys(("no", "off", "n"), "false"),
}
_RANGES = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_LENGTHS = {
    "too_short": ("min_length", "at least"),
    "too_long": ("max_length", "at most"),
}
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "model": "a mapping",
    "dict": "a mapping",
    "none": "nothing",
    "finite": "a finite number",
}
_CONTAINERS = ("model", "dict", "tuple", "list")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?\Z")


def validate(model: type[Model], data: object, where: Path) -> tuple[Model | None, list[Problem]]:
    """`data` as a `model`, and every problem with it; paths start with `where`.

    With problems, the model is what they would leave once mended as they say, so that the rules can
    be tried on it; None where they do not say how.
    """
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=True)
    by_path: dict[Path, list[Error]] = {}
    for item in errors[: 10 * MAX_PROBLEMS]:
        by_path.setdefault(_present(item["loc"], data, item["type"]), []).append(item)
    problems = [
        _problem(model, path, group, where)
        for path, group in by_path.items()
        if not _explained_below(path, group, by_path)
    ]
    unfinished = {problem.path[:-1] for problem in problems if problem.code == "VLMC019"}
    kept = [p for p in problems if p.code != "VLMC013" or p.path not in unfinished]
    mended = repaired(data, problems, depth=len(where))
    try:
        return (None if mended is None else model.model_validate(mended)), kept[:MAX_PROBLEMS]
    except ValidationError:
        return None, kept[:MAX_PROBLEMS]


def _present(loc: Iterable[int | str], data: object, kind: str) -> Path:
    """The steps of `loc` that lead through `data`: pydantic adds the names of union members."""
    steps = list(loc)
    missing = steps.pop() if kind == "missing" and steps else None
    path: list[int | str] = []
    value = data
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = cast("dict[object, object]", value)[step]
        elif isinstance(value, list) and isinstance(step, int):
            items = cast("list[object]", value)
            if step >= len(items):
                continue
            value = items[step]
        else:
            continue
        path.append(step)
    return tuple(path) if missing is None else (*path, missing)


def _explained_below(path: Path, group: list[Error], by_path: Mapping[Path, object]) -> bool:
    """Whether a mapping or a list was tried as a member of a union, and a fault inside it says
    why it is not."""
    return isinstance(group[0]["input"], dict | list) and any(
        len(other) > len(path) and other[: len(path)] == path for other in by_path
    )


def _problem(model: type[BaseModel], path: Path, errors: list[Error], where: Path) -> Problem:
    full, first = (*where, *path), errors[0]
    got = first["input"]
    if first["type"] == "extra_forbidden":
        owner = _model_at(model, path[:-1])
        fields = {} if owner is None else owner.model_fields
        return unknown_key(full, fields, got, lambda name: _accepts(fields[name], got))
    if first["type"] == "missing":
        return _missing(model, path, full)
    about = planned()["auto"].get(dotted(full)) if got == "auto" else None
    if about is not None:
        return not_yet(full, f"`auto` for `{path[-1]}`", about)
    for error in errors:
        if error["type"] in _RANGES or error["type"] in _LENGTHS:
            return _out_of_range(full, error)
    words = _words(errors)
    fix = _trap(got, name_of(full), errors)
    others = [e for e in errors if e["type"] != "literal_error" and not _container(e)]
    meant = not others or (isinstance(got, str) and suggestion(got, words) is not None)
    if words and isinstance(got, str) and fix is None and meant:
        return bad_word(full, got, words, otherwise=_expected(others))
    return wrong_type(full, _expected(errors), got, fix)


def _accepts(field: FieldInfo, value: object) -> bool:
    """Whether a value has the type of a field."""
    kind: Any = field.annotation
    for detail in field.metadata:
        kind = Annotated[kind, detail]
    try:
        TypeAdapter[Any](kind).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _missing(model: type[BaseModel], path: Path, full: Path) -> Problem:
    key = path[-1]
    if isinstance(key, int):
        owner = _field(model, path[:-1])
        size = 0 if owner is None else len(typing.get_args(owner.annotation))
        return wrong_type(full[:-1], f"a list of {size or f'more than {key}'}", [None] * key)
    field = _field(model, path)
    return Problem(
        code="VLMC013",
        path=full[:-1],
        message=f"`{name_of(full[:-1])}` needs the key `{key}`",
        expected=(field and field.description) or f"a value for `{key}`",
        got="nothing",
        help=f"{key}: ...",
        at_key=True,
    )


def _out_of_range(full: Path, error: Error) -> Problem:
    key, context = name_of(full), error["ctx"]
    if error["type"] in _LENGTHS:
        bound, words = _LENGTHS[error["type"]]
        expected, got = f"a list of {words} {context[bound]}", f"{context['actual_length']}"
        help_ = None
    else:
        bound, words = _RANGES[error["type"]]
        limit = context[bound]
        limit = int(limit) if float(limit).is_integer() else limit
        expected, got = f"{words} {limit:,}", shown(error["input"])
        help_ = f"{key}: {limit}" if bound in ("ge", "le") else None
    return Problem(
        code="VLMC012",
        path=full,
        message=f"`{key}` is out of range",
        expected=expected,
        got=got,
        help=help_,
    )


def _container(error: Error) -> bool:
    return error["type"].split("_")[0] in _CONTAINERS


def _words(errors: list[Error]) -> list[str]:
    """The words that a literal accepts, taken from pydantic's sentence about it."""
    words: list[str] = []
    for error in errors:
        if error["type"] == "literal_error":
            words.extend(re.findall(r"'([^']*)'", str(error["ctx"]["expected"])))
    return list(dict.fromkeys(words))


def _expected(errors: list[Error]) -> str:
    names: list[str] = []
    for error in errors:
        kind = error["type"]
        if kind == "literal_error":
            words = _words([error])
            names.append(" or ".join(words) if words else str(error["ctx"]["expected"]))
        else:
            names.append(_TYPES.get(kind.split("_")[0], str(error["msg"])))
    return " or ".join(dict.fromkeys(names))


def _trap(got: object, key: str, errors: list[Error]) -> str | None:
    """What to write where YAML 1.1, or a habit from another language, reads otherwise."""
    wanted = {error["type"].split("_")[0] for error in errors}
    if isinstance(got, str):
        return _trap_of_text(got, key, wanted)
    if "string" in wanted and isinstance(got, int | float):
        return f'{key}: "{shown(got).removeprefix("the number ")}"'
    if isinstance(got, float) and "int" in wanted and got.is_integer() and abs(got) < 1e15:
        return f"{key}: {int(got)}"
    if isinstance(got, bool) and wanted & {"int", "float"}:
        return f"{key}: {int(got)}"
    return f"delete `{key}`, or give it a value" if got is None else None


def _trap_of_text(got: str, key: str, wanted: set[str]) -> str | None:
    if "bool" in wanted:
        word = _YAML_1_1.get(got.lower(), got.lower())
        return f"{key}: {word}" if word in ("true", "false") else None
    number = got.strip().replace("_", "").replace(",", "")
    if not wanted & {"int", "float"} or not _NUMBER.match(number):
        return None
    return f"{key}: {number}" if len(number) <= MAX_NUMBER else "a smaller number"


def _model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    current: type[BaseModel] | None = model
    for step in path:
        if isinstance(step, str):
            field = None if current is None else current.model_fields.get(step)
            current = None if field is None else _model_in(field.annotation)
    return current


def _field(model: type[BaseModel], path: Path) -> FieldInfo | None:
    owner = _model_at(model, path[:-1])
    return None if owner is None else owner.model_fields.get(str(path[-1]))


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) in (
        typing.Union,
        typing.Annotated,
        tuple,
    ):
        found = (_model_in(argument) for argument in typing.get_args(annotation))
        return next((model for model in found if model is not None), None)
    return None
