"""Parameters and fields that may be None by their annotation, but never are: the annotation loses
its None, so that tests for it fold away."""

from __future__ import annotations

from typing import cast

import libcst as cst

from vlmc.emit.inline.families import Family, Parameter, bound, parameters
from vlmc.emit.inline.literals import value_of
from vlmc.emit.inline.program import Key, Program
from vlmc.emit.inline.scope import KnownScope, optional
from vlmc.emit.inline.tree import Left, rewrite
from vlmc.emit.inline.usage import names


def narrow(program: Program, family: Family) -> bool:
    """Narrows what it can of a family of which all calls are known; whether there was anything."""
    expected = {key: parameters(program, key) for key in family.keys}
    first = expected[family.keys[0]]
    given = [bound(site.call, first) for site in family.sites]
    scopes = [KnownScope(program.functions[site.caller], program) for site in family.sites]
    changed = False
    for parameter in first:
        if not optional(parameter.annotation) or parameter.annotation is None:
            continue
        arguments = [(of or {}).get(parameter.name) for of in given]
        present = all(
            argument is not None and scope.present(argument.value)
            for argument, scope in zip(arguments, scopes, strict=True)
        )
        if present and all(_may(program, key, parameter, expected[key]) for key in family.keys):
            for key in family.keys:
                _strip(program, key, parameter.name)
            changed = True
    return changed


def _may(program: Program, key: Key, parameter: Parameter, expected: list[Parameter]) -> bool:
    """Whether the function has the parameter, never binds it again, and may lose its default."""
    if parameter.name not in [p.name for p in expected]:
        return False
    function = program.functions.get(key)
    if function is not None and names(function.node).bound[parameter.name] > 1:
        return False
    before = expected[: [p.name for p in expected].index(parameter.name)]
    defaults = any(p.default is not None for p in before if p.place is not None)
    return parameter.place is None or not defaults


def _strip(program: Program, key: Key, name: str) -> None:
    def leave(_: cst.CSTNode, node: cst.CSTNode) -> Left:
        if isinstance(node, cst.Param):
            return _narrowed(node) if node.name.value == name else node
        if isinstance(node, cst.AnnAssign) and isinstance(node.target, cst.Name):
            return _narrowed(node) if node.target.value == name else node
        return node

    function = program.functions.get(key)
    if function is not None:
        parameters = rewrite(function.node.params, leave)
        function.node = function.node.with_changes(params=cast("cst.Parameters", parameters))
        return
    record = program.classes[key[0]]
    record.members = [
        member if isinstance(member, str) else cast("cst.BaseStatement", rewrite(member, leave))
        for member in record.members
    ]


def _narrowed(node: cst.Param | cst.AnnAssign) -> cst.CSTNode:
    annotation = node.annotation
    if annotation is None:
        return node
    kept = annotation.with_changes(annotation=_without_none(annotation.annotation))
    default = node.default if isinstance(node, cst.Param) else node.value
    if default is None or value_of(default) is not None:
        return node.with_changes(annotation=kept)
    field = "default" if isinstance(node, cst.Param) else "value"
    changes = {field: None, "equal": cst.MaybeSentinel.DEFAULT, "annotation": kept}
    return node.with_changes(**changes)


def _without_none(node: cst.BaseExpression) -> cst.BaseExpression:
    """A union without its None."""
    if isinstance(node, cst.BinaryOperation):
        if value_of(node.right) is None:
            return _without_none(node.left)
        if value_of(node.left) is None:
            return _without_none(node.right)
        left = _without_none(node.left)
        return node if left is node.left else node.with_changes(left=left)
    return node
