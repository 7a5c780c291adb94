"""Parameters across the whole program: those that every call gives one constant become it, those
that nobody reads go, in the definitions and at every call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import libcst as cst

from vlmc.emit.inline.families import Family, bound, families, parameters
from vlmc.emit.inline.literals import UNKNOWN, Unknown, Value, same, value_of
from vlmc.emit.inline.narrow import narrow
from vlmc.emit.inline.program import Fact, Key, Program
from vlmc.emit.inline.specialise import without
from vlmc.emit.inline.tree import Left, pure, rewrite, statement, without_last_comma
from vlmc.emit.inline.usage import Census, names


def settle(program: Program, census: Census, public: set[str]) -> bool:
    """Folds and drops parameters wherever that is sound; whether any was."""
    dropped: set[int] = set()
    changed = False
    for family in families(census):
        if any(_open(program, census, key) for key in family.keys):
            continue
        handed_out = any(key[0] in public for key in family.keys)
        for name, value in _decisions(program, census, family, handed_out, dropped):
            changed = True
            for key in family.keys:
                _take(program, key, name, value)
        changed = (not handed_out and narrow(program, family)) or changed
    for function in program.functions.values():
        node = rewrite(function.node, lambda old, new: _without_arguments(old, new, dropped))
        function.node = cast("cst.FunctionDef", node)
    return changed


def _open(program: Program, census: Census, key: Key) -> bool:
    """Whether there may be calls that cannot be seen."""
    owner, name = key
    function = program.functions.get(key)
    if function is None:
        return owner not in program.classes
    special = name.startswith("__") and name != "__init__"
    decorated = bool(function.decorators - {"staticmethod"})
    unseen = name in census.opened or key in census.handed_on
    return function.public or special or decorated or unseen


def _decisions(
    program: Program, census: Census, family: Family, handed_out: bool, dropped: set[int]
) -> Iterable[tuple[str, Value | Unknown]]:
    """The parameters to take away, each with the constant that it becomes (UNKNOWN where it is
    never read); their arguments are added to `dropped`. A record that is handed out keeps the
    fields that it is ever given."""
    expected = {key: parameters(program, key) for key in family.keys}
    first = expected[family.keys[0]]
    arguments = [bound(site.call, first) for site in family.sites]
    for parameter in first:
        alike = all(
            any(p.name == parameter.name and p.place == parameter.place for p in expected[key])
            for key in family.keys
        )
        if not alike or any(given is None for given in arguments):
            continue
        given = [(of or {}).get(parameter.name) for of in arguments]
        if handed_out and any(argument is not None for argument in given):
            continue
        values = [value_of(parameter.default if a is None else a.value) for a in given]
        constant = not isinstance(values[0], Unknown) and all(same(values[0], v) for v in values)
        clean = not handed_out and all(a is None or pure(a.value) for a in given)
        if constant and not any(_rebound(program, key, parameter.name) for key in family.keys):
            yield parameter.name, values[0]
        elif clean and not any(_read(program, census, key, parameter.name) for key in family.keys):
            yield parameter.name, UNKNOWN
        else:
            continue
        dropped.update(id(a) for a in given if a is not None)


def _rebound(program: Program, key: Key, name: str) -> bool:
    function = program.functions.get(key)
    return function is not None and names(function.node).bound[name] > 1


def _read(program: Program, census: Census, key: Key, name: str) -> bool:
    function = program.functions.get(key)
    if function is None:
        return census.reads_attribute(key[0], name)
    return names(function.node).read[name] > 0


def _take(program: Program, key: Key, name: str, value: Value | Unknown) -> None:
    function = program.functions.get(key)
    if function is not None:
        if not isinstance(value, Unknown):
            function.constants[name] = value
        without(function, {name})
        return
    record = program.classes[key[0]]
    record.members = [member for member in record.members if not _is_field(member, name)]
    record.facts[name] = replace(Fact(), value=value, plain=True, type="foreign")


def _is_field(member: str | cst.BaseStatement, name: str) -> bool:
    small = None if isinstance(member, str) else statement(member)
    target = small.target if isinstance(small, cst.AnnAssign) else None
    return isinstance(target, cst.Name) and target.value == name


def _without_arguments(old: cst.CSTNode, new: cst.CSTNode, dropped: set[int]) -> Left:
    if not isinstance(old, cst.Call) or not isinstance(new, cst.Call):
        return new
    if not any(id(argument) in dropped for argument in old.args):
        return new
    pairs = zip(old.args, new.args, strict=True)
    kept = [argument for was, argument in pairs if id(was) not in dropped]
    return new.with_changes(args=without_last_comma(kept))
