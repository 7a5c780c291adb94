"""The problems that several parts of the loader find, each worded once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path as FilePath
from typing import Any, cast

from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.nearest import listing, near, ranked, suggestion
from vlmc.spec import presets
from vlmc.spec.reader import core_scalar, parse, plain

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]*\Z")

SHOWN = 60
"""Characters of a user's value that a message repeats."""


@cache
def planned() -> dict[str, dict[str, Any]]:
    """The words of the language that this release cannot build yet: `kinds`, `presets`, `keys`,
    `words` and `auto`."""
    text = FilePath(__file__).with_name("planned.yaml").read_text(encoding="utf-8")
    return plain(parse(text, "planned.yaml"))


def dotted(path: Path) -> str:
    """A path as the language's documents write it, without list indices."""
    return ".".join(step for step in path if isinstance(step, str))


def name_of(path: Path) -> str:
    """The key at the end of a path, with the place in its list."""
    words = [index for index, step in enumerate(path) if isinstance(step, str)]
    if not words:
        return "the document"
    last = words[-1]
    return f"{path[last]}" + "".join(f"[{step}]" for step in path[last + 1 :])


def unknown_key(
    path: Path,
    valid: Iterable[str],
    value: object = None,
    fits: Callable[[str], bool] = lambda name: True,
) -> Problem:
    """An unknown key, or a key that is planned; of names that are equally near, the one that
    `fits` its value was meant."""
    key, names = str(path[-1]), list(valid)
    about = planned()["keys"].get(dotted(path))
    if about is not None:
        return not_yet(path, f"`{key}`", about, at_key=True)
    close = near(key, names)
    meant = next((name for name in close if fits(name)), None)
    if meant is not None and isinstance(value, str | int | float):
        help_ = f"{meant}: {_written(value)}"
    elif close:
        help_ = f"did you mean `{meant or close[0]}`?"
    else:
        help_ = "remove it: nothing would read it"
    return Problem(
        code="VLMC010",
        path=path,
        message=f"unknown key `{key[:SHOWN]}`",
        expected=listing(key, names),
        got=key[:SHOWN],
        help=help_,
        at_key=True,
    )


def unknown_name(path: Path, word: str, valid: Iterable[str]) -> Problem:
    """A preset (VLMC014) or a kind (VLMC015) that does not exist; one word for an encoder or a
    language model is taken for a preset."""
    what, names = str(path[-1]), list(valid)
    meant = suggestion(word, names)
    got, help_ = word[:SHOWN] or "no word", f"{what}: {meant}" if meant else None
    for role, called in (("encoder", "an encoder"), ("language", "a language model")):
        if role != path[0] and word in presets.names(role):
            got, help_ = f"{word}, the preset of {called}", f"{role}: {word}"
    return Problem(
        code="VLMC014" if what in ("preset", "encoder", "language") else "VLMC015",
        path=path,
        message=f"unknown {what} `{word[:SHOWN]}`",
        expected=listing(word, names),
        got=got,
        help=help_,
    )


def not_yet(path: Path, what: str, about: str, *, at_key: bool = False) -> Problem:
    """A word that the language has and this release cannot build."""
    return Problem(
        code="VLMC019",
        path=path,
        message=f"{what} is part of the language, but this release cannot build it",
        expected="a design made of what `vlmc schema` lists",
        got=about,
        help="leave it out, or choose one of what `vlmc schema` lists",
        at_key=at_key,
    )


def bad_word(path: Path, got: str, valid: Iterable[str], *, otherwise: str = "") -> Problem:
    """A word that is none of the valid ones; `otherwise` says what else would do."""
    names = list(valid)
    about = planned()["words"].get(dotted(path), {}).get(got)
    if about is not None:
        return not_yet(path, f"`{got}`", about)
    key = name_of(path)
    return Problem(
        code="VLMC012",
        path=path,
        message=f"`{key}` cannot be {got[:SHOWN]!r}",
        expected=listing(got, names) + (f" or {otherwise}" if otherwise else ""),
        got=got[:SHOWN],
        help=f"{key}: {ranked(got, names)[0]}",
    )


def wrong_type(path: Path, expected: str, got: object, help_: str | None = None) -> Problem:
    """A value of the wrong type."""
    return Problem(
        code="VLMC011",
        path=path,
        message=f"`{name_of(path)}` has the wrong type",
        expected=expected,
        got=shown(got),
        help=help_,
    )


def _written(value: str | int | float) -> str:
    """A scalar as YAML writes it, cut where it is long."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)[:SHOWN]
    plainly = isinstance(value, int | float) or (_WORD.match(text) and core_scalar(text) == text)
    return text if plainly else json.dumps(text, ensure_ascii=False)


def shown(value: object) -> str:
    """A value as a message repeats it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(cast('list[object]', value))}"
    text = str(value)
    cut = text[:SHOWN] + ("..." if len(text) > SHOWN else "")
    return f"the number {cut}" if isinstance(value, int | float) else f"the text {cut!r}"
