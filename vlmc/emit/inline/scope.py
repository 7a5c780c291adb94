"""What is known inside one function of the program."""

from __future__ import annotations

import libcst as cst

from vlmc.emit.inline.literals import UNKNOWN, Unknown, Value, value_of
from vlmc.emit.inline.program import Fact, Function, Key, Objects, Program
from vlmc.emit.inline.tree import dotted, every, walk
from vlmc.emit.inline.typist import Typist
from vlmc.emit.inline.usage import names

_NOTHING = Fact()
_TORCH = ("torch", "F", "math")
_IN_PLACE = {"append", "extend", "insert", "pop", "clear", "update", "setdefault", "remove"}


def optional(annotation: cst.Annotation | None) -> bool:
    """Whether an annotation allows None, or there is none."""
    if annotation is None:
        return True
    return any(name.value == "None" for name in every(annotation.annotation, cst.Name))


class KnownScope:
    """What is known inside a function: implements the scope of a fold."""

    def __init__(self, function: Function, program: Program) -> None:
        self.function = function
        self.program = program
        self.typist = Typist(function, program)
        self.names = names(function.node)
        self.constants = dict(function.constants)
        for name in function.constants:
            assert not self.names.bound[name], f"{function.key}: `{name}` is bound again"
        self.tables: dict[str, Value] = {}
        self.bindings: dict[str, cst.BaseExpression] = {}
        """The names that are bound once, each with what to."""
        for node in every(function.node, cst.Assign):
            if len(node.targets) == 1:
                self._bind(node.targets[0].target, node.value)

    def _bind(self, target: cst.BaseExpression, expression: cst.BaseExpression) -> None:
        if not isinstance(target, cst.Name) or self.names.bound[target.value] != 1:
            return
        self.bindings[target.value] = expression
        value = value_of(expression)
        if isinstance(value, Unknown):
            return
        if isinstance(value, tuple) and len(value) > 1 and self.names.read[target.value] > 1:
            self.tables[target.value] = value
        else:
            self.constants[target.value] = value

    def name(self, name: str) -> Value | Unknown:
        """The value of a local name."""
        return self.constants.get(name, UNKNOWN)

    def table(self, name: str) -> Value | Unknown:
        """The tuple that a local name keeps: too long to be put in wherever it is read."""
        return self.tables.get(name, UNKNOWN)

    def attribute(self, node: cst.Attribute) -> Value | Unknown:
        """The value of an attribute, where all objects that it may be of agree."""
        facts = self._facts(node)
        return facts[0].value if len({repr(fact.value) for fact in facts}) == 1 else UNKNOWN

    def column(self, node: cst.BaseExpression) -> tuple[Value, ...]:
        """The value of an argument or an attribute for each instance of the function's class."""
        if isinstance(node, cst.Name) and self.names.bound[node.value] == 1:
            return self.function.columns.get(node.value, ())
        if isinstance(node, cst.Attribute) and dotted(node.value) == "self":
            facts = self._facts(node)
            return facts[0].values if facts else ()
        return ()

    def present(self, node: cst.BaseExpression) -> bool:  # noqa: PLR0911
        """Whether an expression is known not to be None."""
        value = value_of(node)
        if not isinstance(value, Unknown):
            return value is not None
        match node:
            case cst.Name():
                return self._name_present(node.value)
            case cst.Attribute():
                facts = self._facts(node)
                known = bool(facts) and all(fact.present for fact in facts)
                return known or self._field_present(node)
            case cst.IfExp():
                return self.present(node.body) and self.present(node.orelse)
            case cst.Call():
                return self._call_present(node)
            case cst.Tuple() | cst.List() | cst.ListComp() | cst.BinaryOperation():
                return True
            case _:
                return isinstance(node, cst.Comparison | cst.FormattedString)

    def _name_present(self, name: str) -> bool:
        if self.names.bound[name] != 1:
            return False
        if name in self.bindings:
            return self.present(self.bindings[name])
        of = [p for p in self.function.parameters if p.name.value == name]
        return bool(of) and not optional(of[0].annotation)

    def _call_present(self, node: cst.Call) -> bool:
        targets = self.typist.targets(node)
        if targets:
            return all(self._gives(key) for key in targets)
        root = (dotted(node.func) or "").split(".")[0]
        return targets is not None and root in _TORCH

    def _gives(self, key: Key) -> bool:
        function = self.program.functions.get(key)
        return key[1] == "__init__" or (
            function is not None and not optional(function.node.returns)
        )

    def _field_present(self, node: cst.Attribute) -> bool:
        kind = self.typist.type(node.value)
        if not isinstance(kind, Objects):
            return False
        fields = [self.program.classes[name].fields().get(node.attr.value) for name in kind.names]
        return all(field is not None and not optional(field.annotation) for field in fields)

    def _facts(self, node: cst.Attribute) -> list[Fact]:
        kind = self.typist.type(node.value)
        if not isinstance(kind, Objects):
            return []
        owners = (self.program.classes[name] for name in sorted(kind.names))
        return [owner.facts.get(node.attr.value, _NOTHING) for owner in owners]

    def is_part(self, node: cst.BaseExpression) -> bool:
        """Whether an expression is an attribute of a module, which never changes."""
        class_ = self.program.classes.get(self.function.key[0])
        if class_ is None or not isinstance(node, cst.Attribute) or dotted(node.value) != "self":
            return False
        return class_.form == "module" and node.attr.value in class_.facts

    def effectless(self, node: cst.CSTNode) -> bool:
        """Whether an expression only makes a value: nothing is changed, nothing can be raised by
        our own code."""
        return all(self._one_effectless(inner) for inner in walk(node))

    def _one_effectless(self, node: cst.CSTNode) -> bool:
        match node:
            case cst.NamedExpr() | cst.Await() | cst.Yield():
                return False
            case cst.Call():
                targets = self.typist.targets(node)
                if targets:
                    return all(self._changes_nothing(key) for key in targets)
                func = node.func
                if targets is None or not isinstance(func, cst.Attribute):
                    return False
                name = func.attr.value
                return not name.endswith("_") and name not in _IN_PLACE
            case _:
                return True

    def _changes_nothing(self, key: Key) -> bool:
        function = self.program.functions.get(key)
        if key[0] or function is None:
            return False
        inner = KnownScope(function, self.program)
        for node in walk(function.node):
            target = node.target if isinstance(node, cst.AssignTarget | cst.AugAssign) else None
            if isinstance(target, cst.Attribute | cst.Subscript) or isinstance(node, cst.Raise):
                return False
        return inner.effectless(function.node.body)
