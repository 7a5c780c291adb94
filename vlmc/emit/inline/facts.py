"""What the built model says of the attributes of its classes."""

from __future__ import annotations

from typing import cast

import libcst as cst
from torch import nn

from vlmc.emit.inline.groups import Group, Grouping
from vlmc.emit.inline.literals import UNKNOWN, Value, is_value, same
from vlmc.emit.inline.program import Fact, Items, Objects, Program, Type
from vlmc.emit.inline.tree import dotted, every
from vlmc.emit.inline.typist import join

_LISTS = (nn.ModuleList, nn.ModuleDict)


def observe(program: Program, grouping: Grouping) -> None:
    """Notes the facts of each group's class, from its instances."""
    for group in grouping.groups:
        class_ = program.classes[group.name]
        for name in _set_once(program, group.name):
            values = [_attribute(instance.module, name) for instance in group.instances]
            class_.facts[name] = _fact(values, grouping)


def _set_once(program: Program, owner: str) -> list[str]:
    """The attributes that the constructor sets and no other method does."""
    inside: dict[str, None] = {}
    outside: set[str] = set()
    for method in program.methods(owner):
        for name in assigned(method.node):
            if method.key[1] == "__init__":
                inside[name] = None
            else:
                outside.add(name)
    return [name for name in inside if name not in outside]


def assigned(node: cst.CSTNode) -> list[str]:
    """The attributes of `self` that a function sets."""
    found: list[str] = []
    for inner in every(node, cst.AssignTarget, cst.AnnAssign, cst.AugAssign):
        for part in every(inner.target, cst.Attribute):
            if dotted(part.value) == "self":
                found.append(part.attr.value)
    return found


def _attribute(module: nn.Module, name: str) -> object:
    return cast("object", getattr(module, name, UNKNOWN))


def _fact(values: list[object], grouping: Grouping) -> Fact:
    present = all(value is not None and value is not UNKNOWN for value in values)
    plain = all(is_value(value) for value in values)
    first = values[0]
    if plain and all(same(first, other) for other in values):
        return Fact(cast("Value", first), present, plain, "foreign")
    if plain:
        return Fact(UNKNOWN, present, plain, "foreign", cast("tuple[Value, ...]", tuple(values)))
    kinds: set[Type] = {_type(value, grouping) for value in values if value is not None}
    return Fact(UNKNOWN, present, plain, join(sorted(kinds, key=repr)))


def _type(value: object, grouping: Grouping) -> Type:
    if isinstance(value, nn.Sequential):
        return "foreign"
    if isinstance(value, _LISTS):
        kinds: set[Type] = {_type(module, grouping) for module in value.children()}
        return Items(join(sorted(kinds, key=repr)))
    if isinstance(value, nn.Module):
        group = grouping.of_module(value)
        return Objects(frozenset({group.name})) if group else "foreign"
    return "foreign"


def called_by_torch(grouping: Grouping) -> set[str]:
    """Classes of modules inside an nn.Sequential, whose calls cannot be seen."""
    found: set[str] = set()
    for group in grouping.groups:
        for instance in group.instances:
            for child in instance.module.children():
                if isinstance(child, nn.Sequential):
                    groups: list[Group | None] = [grouping.of_module(m) for m in child.modules()]
                    found.update(g.name for g in groups if g is not None)
    return found
