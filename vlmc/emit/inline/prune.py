"""What nobody needs any more: attributes never read, methods never called, empty constructors."""

from __future__ import annotations

from typing import cast

import libcst as cst

from vlmc.emit.inline.facts import assigned
from vlmc.emit.inline.literals import value_of
from vlmc.emit.inline.program import Class, Function, Program
from vlmc.emit.inline.tree import Left, dotted, is_docstring, pure, rewrite, statement
from vlmc.emit.inline.usage import Census


def prune(program: Program, census: Census) -> bool:
    """Takes away what is not needed; whether there was anything."""
    changed = False
    for class_ in program.classes.values():
        for function in program.methods(class_.name):
            if _unused(function, census) or _empty(function, class_):
                del program.functions[function.key]
                class_.members.remove(function.key[1])
                changed = True
        constructor = program.functions.get((class_.name, "__init__"))
        if constructor is not None:
            changed = _drop_attributes(constructor, class_, census) or changed
    return changed


def _unused(function: Function, census: Census) -> bool:
    owner, name = function.key
    if function.public or name.startswith("__"):
        return False
    called = function.key in census.sites or function.key in census.handed_on
    return not (called or name in census.opened or census.reads_attribute(owner, name))


def _empty(function: Function, class_: Class) -> bool:
    """Whether a constructor does no more than that of nn.Module."""
    if function.key[1] != "__init__" or function.parameters:
        return False
    return all(
        is_docstring(line) or cst.Module([]).code_for_node(line).strip() == "super().__init__()"
        for line in function.node.body.body
    )


def _drop_attributes(constructor: Function, class_: Class, census: Census) -> bool:
    body = assigned(constructor.node)

    def leave(_: cst.CSTNode, new: cst.CSTNode) -> Left:
        small = statement(new)
        if not isinstance(small, cst.Assign | cst.AnnAssign) or small.value is None:
            return new
        target = small.target if isinstance(small, cst.AnnAssign) else small.targets[0].target
        if not isinstance(target, cst.Attribute) or dotted(target.value) != "self":
            return new
        name = target.attr.value
        fact = class_.facts.get(name)
        unread = not census.reads_attribute(class_.name, name)
        plain = fact.plain if fact is not None else class_.form == "plain"
        if unread and plain and pure(small.value):
            return None
        # An optional part that is there was set to None first.
        before = fact is not None and fact.present and value_of(small.value) is None
        return None if before and body.count(name) > 1 else new

    node = cast("cst.FunctionDef", rewrite(constructor.node, leave))
    changed = node is not constructor.node
    constructor.node = node
    return changed
