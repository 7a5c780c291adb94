"""Partial evaluation of code in which some names and attributes are known.

Each rule looks at one node whose children are folded already; constants are the literals in the
tree itself. Comments stay with the statements that stay.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol, cast

import libcst as cst
from torch import nn

from vlmc.emit.inline import branches
from vlmc.emit.inline.branches import in_place_of, is_not
from vlmc.emit.inline.literals import UNKNOWN, Unknown, Value, literal, same, value_of
from vlmc.emit.inline.tree import Left, dotted, rewrite, without_last_comma

_COMPARE: dict[type[cst.CSTNode], Callable[[Any, Any], bool]] = {
    cst.Equal: operator.eq,
    cst.NotEqual: operator.ne,
    cst.LessThan: operator.lt,
    cst.LessThanEqual: operator.le,
    cst.GreaterThan: operator.gt,
    cst.GreaterThanEqual: operator.ge,
    cst.Is: operator.is_,
    cst.IsNot: operator.is_not,
    cst.In: lambda item, items: item in items,
    cst.NotIn: lambda item, items: item not in items,
}
_ARITHMETIC: dict[type[cst.CSTNode], Callable[[Any, Any], Any]] = {
    cst.Add: operator.add,
    cst.Subtract: operator.sub,
    cst.Multiply: operator.mul,
    cst.Divide: lambda a, b: a / b,
    cst.FloorDivide: lambda a, b: a // b,
    cst.Modulo: operator.mod,
    cst.Power: lambda a, b: a**b,
}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "max": max, "min": min, "len": len, "sum": sum, "abs": abs, "int": int, "float": float,
    "bool": bool, "round": round, "tuple": tuple,
}  # fmt: skip
_NEUTRAL: tuple[tuple[type[cst.CSTNode], int], ...] = (
    (cst.Add, 0), (cst.Subtract, 0), (cst.Multiply, 1), (cst.FloorDivide, 1),
)  # fmt: skip
_READABLE_FLOAT = 8


class Scope(Protocol):
    """What is known where the code stands."""

    def name(self, name: str) -> Value | Unknown:
        """The value of a local name."""
        ...

    def attribute(self, node: cst.Attribute) -> Value | Unknown:
        """The value of an attribute."""
        ...

    def table(self, name: str) -> Value | Unknown:
        """The tuple that a local name keeps: too long to be put in wherever it is read."""
        ...

    def column(self, node: cst.BaseExpression) -> tuple[Value, ...]:
        """The value of an expression for each instance of the class; () where that is open."""
        ...

    def present(self, node: cst.BaseExpression) -> bool:
        """Whether an expression is known not to be None."""
        ...


_TARGETS = (cst.AssignTarget, cst.AnnAssign, cst.AugAssign)


def fold(node: cst.CSTNode, scope: Scope) -> Left:
    """The code with what is known put in, and without what can never run."""
    return rewrite(node, lambda original, updated: _fold(original, updated, scope))


def _fold(original: cst.CSTNode, node: cst.CSTNode, scope: Scope) -> Left:
    """What becomes of one node whose children are folded."""
    if type(node) in _TARGETS:
        return _same_target(original, node)
    informed = _INFORMED_RULES.get(type(node))
    if informed is not None:
        node = informed(node, scope)
    rule = _RULES.get(type(node))
    return node if rule is None else rule(node)


def _same_target(original: Any, node: Any) -> cst.CSTNode:
    """What is assigned to stays, though its value be known."""
    if node.target is original.target:
        return node
    if isinstance(node, cst.AssignTarget) or node.value is original.value:
        return original
    return node.with_changes(target=original.target)


def _name(node: cst.Name, scope: Scope) -> cst.BaseExpression:
    return _known(node, scope.name(node.value))


def _attribute(node: cst.Attribute, scope: Scope) -> cst.BaseExpression:
    return _known(node, scope.attribute(node))


def _known(node: cst.BaseExpression, value: Value | Unknown) -> cst.BaseExpression:
    return node if isinstance(value, Unknown) else literal(value)


def _comparison(node: cst.Comparison, scope: Scope) -> cst.BaseExpression:
    if len(node.comparisons) != 1:
        return node
    target = node.comparisons[0]
    left, right = _value(node.left, scope), _value(target.comparator, scope)
    if right is None and isinstance(left, Unknown):
        if isinstance(target.operator, cst.Is | cst.IsNot) and scope.present(node.left):
            return literal(isinstance(target.operator, cst.IsNot))
        return node
    compare = _COMPARE[type(target.operator)]
    if not isinstance(left, Unknown) and not isinstance(right, Unknown):
        return literal(compare(left, right))
    lefts, rights = scope.column(node.left), scope.column(target.comparator)
    if not isinstance(left, Unknown):
        lefts = (left,) * len(rights)
    if not isinstance(right, Unknown):
        rights = (right,) * len(lefts)
    outcomes = {compare(*pair) for pair in zip(lefts, rights, strict=False)}
    return literal(outcomes.pop()) if len(outcomes) == 1 else node


def _value(node: cst.BaseExpression, scope: Scope) -> Value | Unknown:
    """The value of a literal, or of a name that keeps a tuple."""
    value = value_of(node)
    return scope.table(node.value) if value is UNKNOWN and isinstance(node, cst.Name) else value


def _boolean(node: cst.BooleanOperation) -> cst.BaseExpression:
    both = isinstance(node.operator, cst.And)
    left, right = value_of(node.left), value_of(node.right)
    if not isinstance(left, Unknown):
        return in_place_of(node, node.right if bool(left) == both else node.left)
    # The left side is not known: only where it is True or False itself may the right one go.
    certain = isinstance(node.left, cst.Comparison) or is_not(node.left)
    if isinstance(right, bool) and certain:
        return in_place_of(node, node.left) if right == both else literal(right)
    return node


def _unary(node: cst.UnaryOperation) -> cst.BaseExpression:
    value = value_of(node.expression)
    return literal(not value) if is_not(node) and not isinstance(value, Unknown) else node


def _choice(node: cst.IfExp) -> cst.BaseExpression:
    test = value_of(node.test)
    if isinstance(test, Unknown):
        return node
    return in_place_of(node, node.body if test else node.orelse)


def _binary(node: cst.BinaryOperation) -> cst.BaseExpression:
    left, right = value_of(node.left), value_of(node.right)
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        # Beside a tensor, a number that changes nothing only distracts.
        for kind, neutral in _NEUTRAL:
            if isinstance(node.operator, kind) and type(right) is int and right == neutral:
                return in_place_of(node, node.left)
        return _power_of_negative(node, left)
    apply = _ARITHMETIC.get(type(node.operator))
    if apply is None or not all(isinstance(side, int | float) for side in (left, right)):
        return node
    try:
        value = apply(left, right)
    except ArithmeticError:
        return node
    if isinstance(value, float) and len(repr(value)) > _READABLE_FLOAT:
        return _power_of_negative(node, left)
    return literal(value)


def _power_of_negative(node: cst.BinaryOperation, left: Value | Unknown) -> cst.BaseExpression:
    negative = isinstance(node.left, cst.UnaryOperation) and not isinstance(left, Unknown)
    if not isinstance(node.operator, cst.Power) or not negative or node.left.lpar:
        return node
    inner = node.left.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return node.with_changes(left=inner)


def _builtin(node: cst.Call, scope: Scope) -> cst.BaseExpression:
    function = _BUILTINS.get(node.func.value) if isinstance(node.func, cst.Name) else None
    values = [_value(argument.value, scope) for argument in node.args]
    plain = all(argument.keyword is None and not argument.star for argument in node.args)
    if function is None or not plain or not values:
        return node
    if any(isinstance(value, Unknown) for value in values):
        return node
    folded = literal(function(*values))
    # float("-inf") has no shorter form: what is folded into itself is done.
    return node if folded.deep_equals(node) else folded


def _torch_call(node: cst.Call) -> cst.BaseExpression:
    """A call without the arguments that are torch's defaults."""
    defaults = _defaults(dotted(node.func) or "")
    kept = [argument for argument in node.args if not _is_default(argument, defaults)]
    return node if len(kept) == len(node.args) else node.with_changes(args=without_last_comma(kept))


def _is_default(argument: cst.Arg, defaults: Mapping[str, object]) -> bool:
    name = argument.keyword.value if argument.keyword else ""
    return name in defaults and same(value_of(argument.value), defaults[name])


@cache
def _defaults(function: str) -> dict[str, object]:
    """The defaults of a function or a module of torch."""
    if function == "F.scaled_dot_product_attention":
        return {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None}
    kind = getattr(nn, function.removeprefix("nn."), None) if function.startswith("nn.") else None
    if not isinstance(kind, type):
        return {}
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _subscript(node: cst.Subscript, scope: Scope) -> cst.BaseExpression:
    index = node.slice[0].slice
    place = value_of(index.value) if isinstance(index, cst.Index) else UNKNOWN
    if place == 0 and isinstance(node.value, cst.List) and len(node.value.elements) == 1:
        return node.value.elements[0].value
    values = _value(node.value, scope)
    if not isinstance(values, tuple) or not isinstance(place, int) or len(node.slice) != 1:
        return node
    return literal(values[place])


def _list(node: cst.ListComp) -> cst.BaseExpression:
    """A list over one constant is that one element."""
    items = value_of(node.for_in.iter)
    target = node.for_in.target
    simple = not node.for_in.ifs and node.for_in.inner_for_in is None
    if not simple or not isinstance(items, tuple) or not isinstance(target, cst.Name):
        return node
    if len(items) > 1:
        return node

    def put(name: str, item: Value) -> cst.Element:
        def leave(_: cst.CSTNode, new: cst.CSTNode) -> Left:
            return literal(item) if isinstance(new, cst.Name) and new.value == name else new

        return cst.Element(cast("cst.BaseExpression", rewrite(node.elt, leave)))

    return cst.List([put(target.value, item) for item in items])


def _text(node: cst.FormattedString) -> cst.BaseExpression:
    parts = [_piece(part) for part in node.parts]
    changed = any(new is not old for new, old in zip(parts, node.parts, strict=True))
    return node.with_changes(parts=parts) if changed else node


def _piece(part: cst.BaseFormattedStringContent) -> cst.BaseFormattedStringContent:
    """A piece of an f-string, as text where it is an integer."""
    if not isinstance(part, cst.FormattedStringExpression):
        return part
    value = value_of(part.expression)
    plain = part.conversion is None and part.format_spec is None
    return cst.FormattedStringText(str(value)) if plain and type(value) is int else part


_INFORMED_RULES: dict[type[cst.CSTNode], Callable[[Any, Scope], cst.BaseExpression]] = {
    cst.Name: _name,
    cst.Attribute: _attribute,
    cst.Comparison: _comparison,
    cst.Call: _builtin,
    cst.Subscript: _subscript,
}
_RULES: dict[type[cst.CSTNode], Callable[[Any], Left]] = {
    cst.If: branches.choose,
    cst.BooleanOperation: _boolean,
    cst.UnaryOperation: _unary,
    cst.IfExp: _choice,
    cst.BinaryOperation: _binary,
    cst.Call: _torch_call,
    cst.ListComp: _list,
    cst.FormattedString: _text,
    cst.SimpleStatementLine: branches.line,
    cst.For: branches.loop,
    cst.IndentedBlock: branches.block,
}
