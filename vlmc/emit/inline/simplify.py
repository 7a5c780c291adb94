"""One function, simplified by all that is known of it."""

from __future__ import annotations

from typing import cast

import libcst as cst

from vlmc.emit.inline.fold import fold
from vlmc.emit.inline.literals import UNKNOWN, Unknown, Value, value_of
from vlmc.emit.inline.program import Fact, Function, Objects, Program
from vlmc.emit.inline.tree import Left, rewrite, statement, walk
from vlmc.emit.inline.typist import Typist
from vlmc.emit.inline.usage import Names, names

_NOTHING = Fact()


class _Scope:
    """What is known inside a function."""

    def __init__(self, function: Function, program: Program) -> None:
        self.program = program
        self.typist = Typist(function, program)
        self.names = names(function.node)
        self.constants = dict(function.constants)
        for name in function.constants:
            assert not self.names.bound[name], f"{function.key}: `{name}` is bound again"
        self.constants.update(_local_constants(function.node, self.names))

    def name(self, name: str) -> Value | Unknown:
        return self.constants.get(name, UNKNOWN)

    def attribute(self, node: cst.Attribute) -> Value | Unknown:
        facts = self._facts(node)
        return facts[0].value if len({repr(fact.value) for fact in facts}) == 1 else UNKNOWN

    def present(self, node: cst.BaseExpression) -> bool:
        if isinstance(node, cst.Attribute):
            facts = self._facts(node)
            return bool(facts) and all(fact.present for fact in facts)
        return False

    def _facts(self, node: cst.Attribute) -> list[Fact]:
        kind = self.typist.type(node.value)
        if not isinstance(kind, Objects):
            return []
        owners = (self.program.classes[name] for name in kind.names)
        return [owner.facts.get(node.attr.value, _NOTHING) for owner in owners]


def _local_constants(node: cst.FunctionDef, used: Names) -> dict[str, Value]:
    """Names that are bound once, to a literal."""
    found: dict[str, Value] = {}
    for inner in walk(node):
        if isinstance(inner, cst.Assign) and len(inner.targets) == 1:
            target, value = inner.targets[0].target, value_of(inner.value)
            if isinstance(target, cst.Name) and used.bound[target.value] == 1:
                if not isinstance(value, Unknown):
                    found[target.value] = value
    return found


def simplify(function: Function, program: Program) -> bool:
    """Folds a function until nothing more folds; whether it changed."""
    before = function.node
    while True:
        scope = _Scope(function, program)
        # Bindings go first: where a constant is put in for its name, none may remain.
        bare = rewrite(function.node, lambda _, new, scope=scope: _drop(new, scope))
        new = cast(cst.FunctionDef, fold(cast(cst.FunctionDef, bare), scope))
        if new is function.node:
            return new is not before
        function.node = new


def _drop(node: cst.CSTNode, scope: _Scope) -> Left:
    """Takes away bindings of constants and of names that are never read."""
    small = statement(node)
    if isinstance(small, cst.Assign) and len(small.targets) == 1:
        target = small.targets[0].target
        if isinstance(target, cst.Name):
            unread = not scope.names.read[target.value] and pure(small.value)
            return None if unread or target.value in scope.constants else node
    return node


def pure(node: cst.CSTNode) -> bool:
    """Whether leaving an expression out changes nothing: it calls and binds nothing."""
    return not any(isinstance(n, cst.Call | cst.NamedExpr | cst.Await) for n in walk(node))
