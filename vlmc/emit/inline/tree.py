"""Walking and rewriting syntax trees. Unchanged trees keep their identity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache, lru_cache
from typing import Any, TypeGuard, TypeVar, cast

import libcst as cst

_Node = TypeVar("_Node", bound=cst.CSTNode)
Left = cst.CSTNode | list[cst.CSTNode] | None
"""What becomes of a node: itself or another, several (in a sequence), or nothing."""

_TRIVIA = {
    "lpar", "rpar", "lbracket", "rbracket", "lbrace", "rbrace", "comma", "semicolon", "equal",
    "dot", "colon", "leading_lines", "lines_after_decorators", "trailing_whitespace", "header",
    "footer", "indent", "asynchronous", "star_etc", "operator", "first_colon", "second_colon",
    "posonly_ind", "type_parameters",
}  # fmt: skip
_NAMES_NOT_READ: dict[type[cst.CSTNode], set[str]] = {
    cst.Attribute: {"attr"},
    cst.Arg: {"keyword"},
    cst.Param: {"name"},
    cst.FunctionDef: {"name"},
    cst.ClassDef: {"name"},
}
_SOURCE_ORDER: dict[type[cst.CSTNode], tuple[str, ...]] = {
    cst.IfExp: ("body", "test", "orelse"),
    cst.FunctionDef: ("decorators", "params", "returns", "body"),
    cst.ClassDef: ("decorators", "bases", "keywords", "body"),
}


@cache
def _structure(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    """The fields of a kind of node that hold code, in the order of the source."""
    if kind in _SOURCE_ORDER:
        return _SOURCE_ORDER[kind]
    skipped = _TRIVIA | _NAMES_NOT_READ.get(kind, set())
    names = [field.name for field in fields(cast("Any", kind))]
    return tuple(n for n in names if n not in skipped and not n.startswith("whitespace"))


@cache
def _of_nodes(kind: type[object]) -> bool:
    """Whether objects of a type are nodes; asked of each type once, since libcst's are abstract
    classes, of which it takes long to say."""
    return issubclass(kind, cst.CSTNode)


def _is_node(value: object) -> TypeGuard[cst.CSTNode]:
    return _of_nodes(type(value))


def _is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    return type(value) is tuple or type(value) is list


def children(node: cst.CSTNode) -> list[cst.CSTNode]:
    """The nodes right below, in the order of the source, without trivia and without names that
    stand for an attribute, a keyword or a definition."""
    found: list[cst.CSTNode] = []
    for name in _structure(type(node)):
        value: object = getattr(node, name)
        if _is_node(value):
            found.append(value)
        elif _is_sequence(value):
            found += (item for item in value if _is_node(item))
    return found


@lru_cache(maxsize=1024)
def walk(node: cst.CSTNode) -> Sequence[cst.CSTNode]:
    """A node and all below it, each before its children, in the order of the source. Nodes never
    change, and the same ones are asked about again and again."""
    found: list[cst.CSTNode] = []
    waiting = [node]
    while waiting:
        first = waiting.pop()
        found.append(first)
        waiting.extend(reversed(children(first)))
    return found


def every(node: cst.CSTNode, *kinds: type[_Node]) -> list[_Node]:
    """Those of the nodes of `walk` that are of one of the kinds, of which each is a class that
    nothing is derived from."""
    return [cast("_Node", found) for found in walk(node) if type(found) in kinds]


def rewrite(node: cst.CSTNode, leave: Callable[[cst.CSTNode, cst.CSTNode], Left]) -> Left:
    """Rebuilds a tree from its leaves; `leave` is given each node as it was and as its rewritten
    children make it. A tree in which nothing changes is returned as it is."""
    changes: dict[str, Any] = {}
    for name in _structure(type(node)):
        value: object = getattr(node, name)
        if _is_node(value):
            new = rewrite(value, leave)
            if new is not value:
                changes[name] = new
        elif _is_sequence(value):
            items = _items(value, leave)
            if items is not None:
                changes[name] = items
    return leave(node, node.with_changes(**changes) if changes else node)


def _items(
    items: Sequence[object], leave: Callable[[cst.CSTNode, cst.CSTNode], Left]
) -> list[object] | None:
    """The rewritten items of a sequence; None where nothing changed."""
    result: list[object] = []
    changed = False
    for item in items:
        new = rewrite(item, leave) if _is_node(item) else item
        changed = changed or new is not item
        if isinstance(new, list):
            result.extend(cast("list[object]", new))
        elif new is not None:
            result.append(new)
    return result if changed else None


def dotted(node: cst.CSTNode | None) -> str | None:
    """`a.b.c` as text; None for anything but names joined by dots."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        before = dotted(node.value)
        return None if before is None else f"{before}.{node.attr.value}"
    return None


def statement(node: cst.CSTNode) -> cst.BaseSmallStatement | None:
    """The small statement that is alone on its line."""
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        return node.body[0]
    return None


def pure(node: cst.CSTNode) -> bool:
    """Whether leaving an expression out changes nothing: it calls and binds nothing."""
    return not every(node, cst.Call, cst.NamedExpr, cst.Await)


def is_docstring(node: cst.CSTNode) -> bool:
    """Whether a statement is a text and nothing more."""
    small = statement(node)
    return isinstance(small, cst.Expr) and isinstance(small.value, cst.SimpleString)


def without_last_comma(arguments: list[cst.Arg]) -> list[cst.Arg]:
    """Arguments of a call, no comma after the last."""
    if arguments:
        arguments[-1] = arguments[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
    return arguments
