"""Second names: `inner = x` goes, and its reads become `x`, where `x` stays as it is meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from vlmc.emit.inline.tree import Left, every, rewrite, statement
from vlmc.emit.inline.usage import names

Statements = Sequence[cst.CSTNode]


def without_aliases(function: cst.FunctionDef) -> cst.FunctionDef:
    """A function without names that only stand for others. A name goes altogether or not at all:
    each of its bindings must be an alias, and each read must follow one in the same block before
    either name is bound again."""
    used = names(function)
    counts: dict[str, int] = {}
    for block in _blocks(function):
        for line in block:
            alias = _alias(line)
            if alias is not None:
                counts[alias[0]] = counts.get(alias[0], 0) + 1
    for name, count in counts.items():
        if used.bound[name] != count:
            continue
        found = _Replacement(name)
        node = rewrite(function, found.leave)
        assert isinstance(node, cst.FunctionDef)
        if found.replaced == used.read[name]:
            return without_aliases(node)
    return function


def _blocks(node: cst.CSTNode) -> list[Statements]:
    return [block.body for block in every(node, cst.IndentedBlock)]


def _alias(node: cst.CSTNode) -> tuple[str, str] | None:
    """The two names of `name = other`."""
    small = statement(node)
    if isinstance(small, cst.Assign) and len(small.targets) == 1:
        target, value = small.targets[0].target, small.value
        if isinstance(target, cst.Name) and isinstance(value, cst.Name):
            return target.value, value.value
    return None


class _Replacement:
    """Replaces the reads of one alias, and counts them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.replaced = 0

    def leave(self, _: cst.CSTNode, node: cst.CSTNode) -> Left:
        if not isinstance(node, cst.IndentedBlock):
            return node
        lines: list[cst.CSTNode] = []
        other: str | None = None
        for line in node.body:
            alias = _alias(line)
            if alias is not None and alias[0] == self.name:
                other = alias[1]
                continue
            lines.append(line if other is None else self._put(line, other))
            if other is not None and names(line).bound[other]:
                other = None
        return node if len(lines) == len(node.body) else node.with_changes(body=lines)

    def _put(self, line: cst.CSTNode, other: str) -> cst.CSTNode:
        """A statement with `other` for the name; a compound one that binds `other` is left."""
        simple = isinstance(line, cst.SimpleStatementLine)
        if not simple and names(line).bound[other]:
            return line
        found = names(line)
        self.replaced += found.read[self.name]

        def leave(_: cst.CSTNode, node: cst.CSTNode) -> Left:
            if isinstance(node, cst.Name) and node.value == self.name:
                return node.with_changes(value=other)
            return node

        new = rewrite(line, leave)
        assert isinstance(new, cst.CSTNode)
        return new
