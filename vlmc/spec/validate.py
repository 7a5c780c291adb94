"""From pydantic's errors to vlmc's problems."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.nearest import listing, suggestion
from vlmc.spec.reader import parse, plain

Model = TypeVar("Model", bound=BaseModel)

YAML_1_1 = {
    **dict.fromkeys(("yes", "on", "y", "Yes", "On", "YES", "ON"), "true"),
    **dict.fromkeys(("no", "off", "n", "No", "Off", "NO", "OFF"), "false"),
}
_RANGES = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
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
    "none": "null",
    "finite": "a finite number",
}


@cache
def planned() -> dict[str, dict[str, Any]]:
    """The words of the language that this release cannot build yet."""
    text = (files("vlmc.spec") / "planned.yaml").read_text(encoding="utf-8")
    return plain(parse(text, "planned.yaml"))


def validate(model: type[Model], data: object, where: Path) -> tuple[Model | None, list[Problem]]:
    """`data` as a `model`, or every problem with it; paths start with `where`."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=True)
    by_path: dict[Path, list[Mapping[str, Any]]] = {}
    for item in errors:
        by_path.setdefault(_present(item["loc"], data, item["type"]), []).append(item)
    return None, [_problem(model, path, group, where) for path, group in by_path.items()]


def _present(loc: Iterable[int | str], data: object, kind: str) -> Path:
    """The steps of `loc` that lead through `data`: pydantic adds the names of union members."""
    steps = list(loc)
    missing = steps.pop() if kind == "missing" and steps else None
    path: list[int | str] = []
    value: Any = data
    for step in steps:
        in_mapping = isinstance(value, dict) and step in value
        in_list = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if in_mapping or in_list:
            path.append(step)
            value = value[step]
    return tuple(path) if missing is None else (*path, missing)


def _problem(
    model: type[BaseModel], path: Path, errors: list[Mapping[str, Any]], where: Path
) -> Problem:
    full = (*where, *path)
    error = errors[0]
    key = str(path[-1]) if path else ""
    if error["type"] == "extra_forbidden":
        return unknown_key(full, _fields_at(model, path[:-1]))
    if error["type"] == "missing":
        return Problem(
            code="VLMC013",
            path=full[:-1],
            message=f"`{'.'.join(map(str, full[:-1]))}` needs the key `{key}`",
            expected=_describe(model, path),
            got="nothing",
            help=f"{key}: ...",
            at_key=True,
        )
    literals = [e for e in errors if e["type"] == "literal_error"]
    got = error["input"]
    if literals and isinstance(got, str):
        return bad_word(full, got, _words(literals))
    if error["type"] in _RANGES:
        bound, words = _RANGES[error["type"]]
        limit = error["ctx"][bound]
        return Problem(
            code="VLMC012",
            path=full,
            message=f"`{key}` is out of range",
            expected=f"{words} {limit:,}",
            got=_shown(got),
            help=f"{key}: {limit}" if bound in ("ge", "le") else None,
        )
    return Problem(
        code="VLMC011",
        path=full,
        message=f"`{key}` has the wrong type" if key else "this has the wrong type",
        expected=_expected(errors),
        got=_shown(got),
        help=_trap(got, key, errors),
    )


def unknown_key(path: Path, valid: Iterable[str]) -> Problem:
    """An unknown key, or a key that is planned."""
    key = str(path[-1])
    names = list(valid)
    about = planned()["keys"].get(".".join(map(str, path)))
    if about is not None:
        return not_yet(path, f"`{key}`", about, at_key=True)
    near = suggestion(key, names)
    return Problem(
        code="VLMC010",
        path=path,
        message=f"unknown key `{key[:60]}`",
        expected=listing(key, names),
        got=key[:60],
        help=f"did you mean `{near}`?" if near else "remove it: nothing would read it",
        at_key=True,
    )


def not_yet(path: Path, what: str, about: str, *, at_key: bool = False) -> Problem:
    """A word that the language has and this release cannot build."""
    return Problem(
        code="VLMC019",
        path=path,
        message=f"{what} is part of the language, but this release cannot build it",
        expected="a design made of what `vlmc schema` lists",
        got=about,
        at_key=at_key,
    )


def bad_word(path: Path, got: str, valid: Iterable[str]) -> Problem:
    """A word that is none of the valid ones."""
    names = list(valid)
    near = suggestion(got, names)
    key = path[-1] if path else "value"
    return Problem(
        code="VLMC012",
        path=path,
        message=f"`{key}` cannot be {got[:60]!r}",
        expected=listing(got, names),
        got=got[:60],
        help=f"{key}: {near or (names[0] if names else '...')}",
    )


def _words(errors: list[Mapping[str, Any]]) -> list[str]:
    words: list[str] = []
    for error in errors:
        for word in str(error["ctx"]["expected"]).replace(" or ", ", ").split(", "):
            words.append(word.strip("'"))
    return list(dict.fromkeys(words))


def _expected(errors: list[Mapping[str, Any]]) -> str:
    names: list[str] = []
    for error in errors:
        kind = error["type"]
        if kind == "literal_error":
            names.append(" or ".join(_words([error])))
        elif kind in ("too_short", "too_long", "missing_positional_only_argument"):
            names.append(str(error["msg"]))
        else:
            prefix = kind.split("_")[0]
            names.append(_TYPES.get(prefix, str(error["msg"])))
    return " or ".join(dict.fromkeys(names))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(typing.cast('list[object]', value))}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return f"the text {str(value)[:60]!r}"


def _trap(got: object, key: str, errors: list[Mapping[str, Any]]) -> str | None:
    if isinstance(got, str) and got in YAML_1_1 and any("bool" in e["type"] for e in errors):
        return f"{key}: {YAML_1_1[got]}   (in YAML 1.2 `{got}` is a word)"
    if isinstance(got, str) and any(e["type"].startswith(("int", "float")) for e in errors):
        number = got.replace("_", "").replace(",", "")
        if number.replace(".", "", 1).isdigit():
            return f"{key}: {number}   (without quotes or separators)"
    if isinstance(got, float) and got.is_integer():
        return f"{key}: {int(got)}"
    if isinstance(got, bool):
        return "true and false are not numbers"
    return None


def _fields_at(model: type[BaseModel], path: Path) -> list[str]:
    current: type[BaseModel] | None = model
    for step in path:
        if current is None or not isinstance(step, str):
            return []
        field = current.model_fields.get(step)
        current = None if field is None else _model_in(field.annotation)
    return [] if current is None else list(current.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) in (
        typing.Union,
        typing.Annotated,
        tuple,
    ):
        found = (_model_in(arg) for arg in typing.get_args(annotation))
        return next((model for model in found if model is not None), None)
    return None


def _describe(model: type[BaseModel], path: Path) -> str:
    current: type[BaseModel] | None = model
    for step in path[:-1]:
        field = None if current is None else current.model_fields.get(str(step))
        current = None if field is None else _model_in(field.annotation)
    field = None if current is None else current.model_fields.get(str(path[-1]))
    if field is None or not field.description:
        return f"a value for `{path[-1]}`"
    return field.description
