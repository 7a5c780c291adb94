"""Several modules as one file: their imports merged, their code in order under headings."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from vlmc.emit.bundle.late import (
    ABSENT,
    DEFINITIONS,
    NEEDED,
    PRESENT,
    deferring,
    is_late,
    is_present,
    stand_ins,
)
from vlmc.emit.bundle.portion import Portion, Taken, Unportable
from vlmc.emit.inline.layout import LINE_LENGTH, formatted

RULE = "# " + "-" * (LINE_LENGTH - 2)

_START = ("import sys", "from pathlib import Path")

_FIRST = """\
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Folders of a build such as onnx/ would pass for the packages of that name.
    del sys.path[0]
"""


def bundled(
    header: str,
    portions: Sequence[Portion],
    closing: str,
    *,
    present: Sequence[str] = PRESENT,
) -> str:
    """The text of the file: `header` is its docstring, `closing` the code at its end. Packages that
    are `present` are imported at its start, all others when they are first used.

    Raises Unportable where a name means two things, or a module takes what does not stand before
    it.
    """
    portions = [deferring(one, present) for one in portions]
    _check_names(portions)
    _check_order(portions)
    lines = {line for one in portions for line in one.imports} - set(_START)
    late = sorted(line for line in lines if is_late(line, present))
    needed = sorted(line for line in lines if is_present(line, present))
    types = sorted({*late, *(line for one in portions for line in one.for_types)})
    parts = [
        f'"""{header.rstrip()}\n"""',
        "from __future__ import annotations",
        "\n".join(_START),
        _FIRST,
        "\n".join(
            sorted(lines.difference(late, needed) | {"from typing import TYPE_CHECKING, Any"})
        ),
    ]
    if late:
        parts.append("\n".join(NEEDED))
    if needed:
        absent = ABSENT
        if "yaml" in present:
            absent = absent.replace('"Pillow"}', '"Pillow", "yaml": "PyYAML"}')
        parts.append(f"try:\n{_indented(needed)}\n{absent}")
    if late:
        parts.append(DEFINITIONS)
    if types:
        parts.append(f"if TYPE_CHECKING:\n{_indented(types)}")
    if late:
        parts[-1] += f"\nelse:\n{_indented(stand_ins(late))}"
    parts += [f"{_heading(one.about)}\n\n\n{one.body}" for one in portions]
    return formatted("\n\n".join((*parts, closing)) + "\n")


def _indented(lines: Sequence[str]) -> str:
    return textwrap.indent("\n".join(lines), "    ")


def _heading(about: str) -> str:
    paragraphs = [" ".join(p.split()) for p in about.split("\n\n")]
    lines = [f"# {line}" for p in paragraphs for line in (*textwrap.wrap(p, LINE_LENGTH - 2), "")]
    return "\n".join((RULE, *(line.rstrip() for line in lines[:-1]), RULE))


def _check_names(portions: Sequence[Portion]) -> None:
    """Raises Unportable where a name of one file would have two meanings."""
    owners: dict[str, str] = {}
    for one in portions:
        for name in sorted(one.defined):
            if name in owners:
                raise Unportable(f"{name} is defined in {owners[name]} and in {one.name}")
            owners[name] = one.name
    meanings: dict[str, str] = {}
    for one in portions:
        for name, what in one.bound.items():
            if name in owners:
                raise Unportable(f"{one.name} imports {what}, but {owners[name]} defines {name}")
            if meanings.setdefault(name, what) != what:
                raise Unportable(f"{name} is {meanings[name]} and, in {one.name}, {what}")


def _check_order(portions: Sequence[Portion]) -> None:
    """Raises Unportable where a module takes what is not in the file, or not yet."""
    found: set[Taken] = set()
    for one in portions:
        for module, name in sorted(one.ours - found):
            raise Unportable(f"{one.name} takes {name} from {module}, which is not before it")
        found |= {(one.name, name) for name in one.defined}
    for one in portions:
        for module, name in sorted(one.later - found):
            raise Unportable(f"{one.name} takes {name} from {module}, which is not in the file")
