"""Statements of which some never run: branches whose test is known, and what stands after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import libcst as cst

from vlmc.emit.inline.literals import Unknown, value_of
from vlmc.emit.inline.tree import Left, pure

_OPPOSITE: dict[type[cst.CSTNode], cst.CSTNode] = {
    cst.Is: cst.IsNot(),
    cst.IsNot: cst.Is(),
    cst.Equal: cst.NotEqual(),
    cst.NotEqual: cst.Equal(),
    cst.In: cst.NotIn(),
    cst.NotIn: cst.In(),
}
ATOMS = (cst.Name, cst.Attribute, cst.Call, cst.Subscript, cst.Integer, cst.Float, cst.Tuple)


def in_place_of(node: cst.BaseExpression, chosen: cst.BaseExpression) -> cst.BaseExpression:
    """`chosen` within the parentheses of `node` where it needs them."""
    if node.lpar and not chosen.lpar and not isinstance(chosen, ATOMS):
        return chosen.with_changes(lpar=node.lpar, rpar=node.rpar)
    return chosen


def is_not(node: cst.CSTNode) -> bool:
    """Whether an expression is `not ...`."""
    return isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Not)


def line(node: cst.SimpleStatementLine) -> Left:
    """A line from which every statement went goes too."""
    return node if node.body else None


def loop(node: cst.For) -> Left:
    """A loop over nothing goes."""
    return None if value_of(node.iter) == () else node


def block(node: cst.IndentedBlock) -> cst.BaseSuite:
    """A block without what stands after a statement that leaves it."""
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


def choose(node: cst.If) -> Left:
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
    if isinstance(test, cst.UnaryOperation) and is_not(test):
        return test.expression
    if not isinstance(test, ATOMS):
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
