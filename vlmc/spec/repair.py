"""A section as it would be once its problems were mended as they say, so that what else is wrong
with the design is found in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, cast

from vlmc.diagnostics import Problem, SpecError
from vlmc.spec.problems import name_of
from vlmc.spec.reader import parse, plain

_NOTHING = object()


def repaired(data: object, problems: Iterable[Problem], *, depth: int) -> Any:
    """`data` without its unknown keys and with the values that the problems' help proposes; None
    where a problem proposes none. The paths of the problems begin `depth` steps above `data`."""
    result = deepcopy(data)
    for problem in problems:
        *way, last = problem.path[depth:] or [None]
        owner: Any = result
        for step in way:
            owner = owner[step]
        if last is None:
            return None
        if problem.code in ("VLMC010", "VLMC019") and problem.at_key:
            del owner[last]
            continue
        value = _proposed(problem)
        if value is _NOTHING:
            return None
        owner[last] = value
    return result


def _proposed(problem: Problem) -> object:
    """The value in a help of the form `key: value`."""
    key = name_of(problem.path)
    if problem.code not in ("VLMC011", "VLMC012") or not (problem.help or "").startswith(f"{key}:"):
        return _NOTHING
    try:
        mended = plain(parse(problem.help or "", "help"))
    except SpecError:
        return _NOTHING
    return cast("dict[str, object]", mended).get(key, _NOTHING)
