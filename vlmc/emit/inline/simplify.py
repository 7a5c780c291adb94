"""One function, simplified by all that is known of it."""

from __future__ import annotations

from itertools import pairwise

import libcst as cst

from vlmc.emit.inline.aliases import without_aliases
from vlmc.emit.inline.fold import fold
from vlmc.emit.inline.literals import value_of
from vlmc.emit.inline.program import Function, Program
from vlmc.emit.inline.scope import KnownScope
from vlmc.emit.inline.tree import Left, dotted, every, pure, rewrite, statement


def simplify(function: Function, program: Program) -> None:
    """Folds a function until nothing more folds."""
    while True:
        before = function.node
        scope = KnownScope(function, program)
        # Bindings go first: where a constant is put in for its name, none may remain.
        _replace(function, rewrite(function.node, lambda _, new, scope=scope: _drop(new, scope)))
        _replace(function, fold(function.node, scope))
        _replace(function, _with_parts(function.node, scope))
        function.node = without_aliases(function.node)
        if function.node is before:
            return


def _replace(function: Function, node: Left) -> None:
    assert isinstance(node, cst.FunctionDef)
    function.node = node


def _with_parts(node: cst.FunctionDef, scope: KnownScope) -> Left:
    """Puts `self.part`, or a list of one that the next line takes apart, where a name for it is
    read only once."""
    lists = _taken_apart(node)
    parts = {
        name: expression
        for name, expression in scope.bindings.items()
        if scope.names.read[name] == 1 and (scope.is_part(expression) or name in lists)
    }

    def leave(old: cst.CSTNode, new: cst.CSTNode) -> Left:
        if isinstance(new, cst.Name):
            return parts.get(new.value, new)
        small = statement(old)
        if isinstance(small, cst.Assign) and isinstance(small.targets[0].target, cst.Name):
            return None if small.targets[0].target.value in parts else new
        return new

    return rewrite(node, leave) if parts else node


def _taken_apart(node: cst.FunctionDef) -> set[str]:
    """Names of lists `name = [item]` from which the next line takes `name[0]`."""
    found: set[str] = set()
    for block in every(node, cst.IndentedBlock):
        for first, second in pairwise(block.body):
            small = statement(first)
            if not isinstance(small, cst.Assign) or not isinstance(small.value, cst.List):
                continue
            name = dotted(small.targets[0].target)
            if name is not None and len(small.value.elements) == 1 and pure(small.value):
                reads = every(second, cst.Subscript)
                if any(dotted(n.value) == name and _first(n) for n in reads):
                    found.add(name)
    return found


def _first(node: cst.Subscript) -> bool:
    index = node.slice[0].slice
    return isinstance(index, cst.Index) and value_of(index.value) == 0


def _drop(node: cst.CSTNode, scope: KnownScope) -> Left:
    """Takes away bindings of constants and of names that are never read."""
    if isinstance(node, cst.For | cst.CompFor):
        return _without_number(node, scope)
    small = statement(node)
    if isinstance(small, cst.Assign) and len(small.targets) == 1:
        target = small.targets[0].target
        if isinstance(target, cst.Name):
            unread = not scope.names.read[target.value] and scope.effectless(small.value)
            return None if unread or target.value in scope.constants else node
    return node


def _without_number(node: cst.For | cst.CompFor, scope: KnownScope) -> cst.CSTNode:
    """A loop over `enumerate(items)` that never reads the number goes over the items."""
    call, target = node.iter, node.target
    if not isinstance(call, cst.Call) or not isinstance(target, cst.Tuple):
        return node
    number = target.elements[0].value
    enumerates = isinstance(call.func, cst.Name) and call.func.value == "enumerate"
    if not enumerates or len(call.args) != 1 or len(target.elements) != 2:
        return node
    if not isinstance(number, cst.Name) or scope.names.read[number.value]:
        return node
    return node.with_changes(target=target.elements[1].value, iter=call.args[0].value)
