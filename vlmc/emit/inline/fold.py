"""Partial evaluation of code in which some names and attributes are known.

Each rule looks at one node whose children are folded already; constants are the literals in the
tree itself. Comments stay with the statements that stay.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, cast

import libcst as cst
from torch import nn

from vlmc.emit.inline.literals import UNKNOWN, Unknown, Value, literal, same, value_of
from vlmc.emit.inline.tree import Left, dotted, pure, rewrite, without_last_comma

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
    cst.Divide: operator.truediv,
    cst.FloorDivide: operator.floordiv,
    cst.Modulo: operator.mod,
    cst.Power: operator.pow,
}
_OPPOSITE: dict[type[cst.CSTNode], cst.CSTNode] = {
    cst.Is: cst.IsNot(),
    cst.IsNot: cst.Is(),
    cst.Equal: cst.NotEqual(),
    cst.NotEqual: cst.Equal(),
    cst.In: cst.NotIn(),
    cst.NotIn: cst.In(),
}
_BUILTINS: dict[str, Callable[..., Any]] = {
    "max": max, "min": min, "len": len, "sum": sum, "abs": abs, "int": int, "float": float,
    "bool": bool, "round": round, "tuple": tuple,
}  # fmt: skip
_NEUTRAL: tuple[tuple[type[cst.CSTNode], int], ...] = (
    (cst.Add, 0), (cst.Subtract, 0), (cst.Multiply, 1), (cst.FloorDivide, 1),
)  # fmt: skip
_READABLE_FLOAT = 8
_ATOMS = (cst.Name, cst.Attribute, cst.Call, cst.Subscript, cst.Integer, cst.Float, cst.Tuple)


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


def fold(node: cst.CSTNode, scope: Scope) -> Left:
    """The code with what is known put in, and without what can never run."""
    return rewrite(node, lambda original, updated: _fold(original, updated, scope))


def _fold(original: cst.CSTNode, node: cst.CSTNode, scope: Scope) -> Left:
    match node:
        case cst.AssignTarget() | cst.AnnAssign() | cst.AugAssign():
            return _same_target(original, node)
        case cst.Name():
            return _known(node, scope.name(node.value))
        case cst.Attribute():
            return _known(node, scope.attribute(node))
        case cst.Comparison():
            return _comparison(node, scope)
        case cst.If():
            return fold_if(node)
        case cst.Call(func=cst.Name()):
            return _builtin(node, scope)
        case cst.Subscript():
            return _subscript(node, scope)
        case _:
            rule = _RULES.get(type(node))
            return node if rule is None else rule(node)


def _same_target(original: Any, node: Any) -> cst.CSTNode:
    """What is assigned to stays, though its value be known."""
    if node.target is original.target:
        return node
    if isinstance(node, cst.AssignTarget) or node.value is original.value:
        return original
    return node.with_changes(target=original.target)


def _known(node: cst.BaseExpression, value: Value | Unknown) -> cst.BaseExpression:
    return node if isinstance(value, Unknown) else literal(value)


def _in_place_of(node: cst.BaseExpression, chosen: cst.BaseExpression) -> cst.BaseExpression:
    """`chosen` within the parentheses of `node` where it needs them."""
    if node.lpar and not chosen.lpar and not isinstance(chosen, _ATOMS):
        return chosen.with_changes(lpar=node.lpar, rpar=node.rpar)
    return chosen


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
        return _in_place_of(node, node.right if bool(left) == both else node.left)
    # The left side is not known: only where it is True or False itself may the right one go.
    certain = isinstance(node.left, cst.Comparison) or _is_not(node.left)
    if isinstance(right, bool) and certain:
        return _in_place_of(node, node.left) if right == both else literal(right)
    return node


def _is_not(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Not)


def _unary(node: cst.UnaryOperation) -> cst.BaseExpression:
    value = value_of(node.expression)
    return literal(not value) if _is_not(node) and not isinstance(value, Unknown) else node


def _choice(node: cst.IfExp) -> cst.BaseExpression:
    test = value_of(node.test)
    return (
        node
        if isinstance(test, Unknown)
        else _in_place_of(node, node.body if test else node.orelse)
    )


def _binary(node: cst.BinaryOperation) -> cst.BaseExpression:
    left, right = value_of(node.left), value_of(node.right)
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        # Beside a tensor, a number that changes nothing only distracts.
        for kind, neutral in _NEUTRAL:
            if isinstance(node.operator, kind) and type(right) is int and right == neutral:
                return _in_place_of(node, node.left)
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
    if isinstance(node.operator, cst.Power) and isinstance(node.left, cst.UnaryOperation):
        if not isinstance(left, Unknown) and not node.left.lpar:
            inner = node.left.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
            return node.with_changes(left=inner)
    return node


def _builtin(node: cst.Call, scope: Scope) -> cst.BaseExpression:
    function = _BUILTINS.get(cst.ensure_type(node.func, cst.Name).value)
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
    kept = [
        a
        for a in node.args
        if a.keyword is None or not _is(a.value, defaults.get(a.keyword.value, UNKNOWN))
    ]
    return node if len(kept) == len(node.args) else node.with_changes(args=without_last_comma(kept))


def _is(node: cst.BaseExpression, default: object) -> bool:
    return default is not UNKNOWN and same(value_of(node), default)


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
    values = _value(node.value, scope)
    if not isinstance(values, tuple) or len(node.slice) != 1:
        return node
    index = node.slice[0].slice
    place = value_of(index.value) if isinstance(index, cst.Index) else UNKNOWN
    return literal(values[place]) if isinstance(place, int) else node


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
    parts: list[cst.BaseFormattedStringContent] = []
    for part in node.parts:
        if isinstance(part, cst.FormattedStringExpression):
            value = value_of(part.expression)
            plain = part.conversion is None and part.format_spec is None
            if plain and type(value) in (int, str):
                part = cst.FormattedStringText(str(value).replace("{", "{{").replace("}", "}}"))
        parts.append(part)
    same = all(new is old for new, old in zip(parts, node.parts, strict=True))
    return node if same else node.with_changes(parts=parts)


def _line(node: cst.SimpleStatementLine) -> Left:
    return node if node.body else None


def _for(node: cst.For) -> Left:
    return None if value_of(node.iter) == () else node


def _block(node: cst.IndentedBlock) -> cst.BaseSuite:
    for index, statement in enumerate(node.body[:-1]):
        if _leaves(statement):
            return node.with_changes(body=node.body[: index + 1])
    return node


def _leaves(statement: cst.CSTNode) -> bool:
    """Whether nothing after a statement is reached."""
    if isinstance(statement, cst.SimpleStatementLine):
        last = statement.body[-1]
        return isinstance(last, cst.Return | cst.Raise | cst.Continue | cst.Break)
    if isinstance(statement, cst.If):
        other = statement.orelse
        rest = other.body if isinstance(other, cst.Else) else other
        return _leaves(statement.body) and rest is not None and _leaves(rest)
    return isinstance(statement, cst.IndentedBlock) and any(map(_leaves, statement.body))


def fold_if(node: cst.If) -> Left:
    """An `if` whose test is known becomes the statements of the branch that is taken.

    `orelse` may be a list here: what became of an `elif`.
    """
    orelse = cast("cst.If | cst.Else | list[cst.CSTNode] | None", node.orelse)
    if isinstance(orelse, list):
        orelse = _else(orelse)
    if isinstance(orelse, cst.Else) and not _statements(orelse.body):
        orelse = None
    test = value_of(node.test)
    if isinstance(test, Unknown):
        if not _statements(node.body) and pure(node.test):
            if orelse is None:
                return []
            body = orelse.body if isinstance(orelse, cst.Else) else cst.IndentedBlock([orelse])
            return node.with_changes(test=negated(node.test), body=body, orelse=None)
        return node if orelse is node.orelse else node.with_changes(orelse=orelse)
    if test:
        return _under(node, _statements(node.body))
    if orelse is None:
        return []
    return _under(node, [orelse] if isinstance(orelse, cst.If) else _statements(orelse.body))


def negated(test: cst.BaseExpression) -> cst.BaseExpression:
    """The opposite of a test."""
    if isinstance(test, cst.Comparison) and len(test.comparisons) == 1:
        opposite = _OPPOSITE.get(type(test.comparisons[0].operator))
        if opposite is not None:
            target = test.comparisons[0].with_changes(operator=opposite)
            return test.with_changes(comparisons=[target])
    if isinstance(test, cst.UnaryOperation) and _is_not(test):
        return test.expression
    if not isinstance(test, _ATOMS):
        test = test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    return cst.UnaryOperation(cst.Not(), test)


def _else(statements: list[cst.CSTNode]) -> cst.Else | cst.If | None:
    if len(statements) == 1 and isinstance(statements[0], cst.If):
        return statements[0]
    body = cast("Sequence[cst.BaseStatement]", statements)
    return cst.Else(cst.IndentedBlock(body)) if body else None


def _statements(body: cst.BaseSuite) -> list[cst.CSTNode]:
    return [s for s in body.body if not (isinstance(s, cst.SimpleStatementLine) and not s.body)]


def _under(node: cst.If, statements: list[cst.CSTNode]) -> list[cst.CSTNode]:
    """The statements, with the comment above `node` above the first."""
    if statements and node.leading_lines:
        first = cast("cst.SimpleStatementLine", statements[0])
        lines = (*node.leading_lines, *first.leading_lines)
        statements = [first.with_changes(leading_lines=lines), *statements[1:]]
    return statements


_RULES: dict[type[cst.CSTNode], Callable[[Any], Left]] = {
    cst.BooleanOperation: _boolean,
    cst.UnaryOperation: _unary,
    cst.IfExp: _choice,
    cst.BinaryOperation: _binary,
    cst.Call: _torch_call,
    cst.ListComp: _list,
    cst.FormattedString: _text,
    cst.SimpleStatementLine: _line,
    cst.For: _for,
    cst.IndentedBlock: _block,
}
