"""The sources of the components: what each file defines and imports."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import libcst as cst

from vlmc.emit.inline.tree import Left, every, rewrite, statement

OURS = "vlmc."
Origin = tuple[str, str]
"""A definition: the module that it stands in, and its name there."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its top-level definitions, and what its names mean."""

    module: str
    file: str
    definitions: dict[str, cst.BaseStatement]
    """Classes, functions and assignments (the latter as a line)."""
    lines: dict[str, tuple[int, int]]
    """First and last line of each definition."""
    calls: dict[str, tuple[int, ...]]
    """The line of each call by name in a definition, in the order of the source."""
    names: dict[str, Origin]
    """What the file's names stand for, of ours."""
    imports: tuple[cst.SimpleStatementLine, ...]
    """Imports of what is not ours."""

    def around(self, line: int) -> str | None:
        """The definition that a line belongs to."""
        for name, (first, last) in self.lines.items():
            if first <= line <= last:
                return name
        return None


def calls_by_name(node: cst.CSTNode) -> list[cst.Call]:
    """The calls `name(...)` below a node, in the order of the source."""
    return [call for call in every(node, cst.Call) if isinstance(call.func, cst.Name)]


@cache
def source(module: str) -> Source:
    """The source of a module of ours, read once in a process."""
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    text = Path(spec.origin).read_text(encoding="utf-8")
    read = cst.parse_module(text)
    result = Source(module, spec.origin, {}, {}, {}, {}, _imports(read))
    code = rewrite(read, _without_cast)
    assert isinstance(code, cst.Module)
    for node, parsed in zip(code.body, ast.parse(text).body, strict=True):
        _add(result, node, parsed)
    return result


def _without_cast(_: cst.CSTNode, node: cst.CSTNode) -> Left:
    """Leaves out what is said to the type checker alone: `cast(T, x)` becomes `x`."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == "cast":
        return node.args[1].value
    return node


def _add(result: Source, node: cst.BaseStatement, parsed: ast.stmt) -> None:
    if isinstance(parsed, ast.ImportFrom) and (parsed.module or "").startswith(OURS):
        for alias in parsed.names:
            result.names[alias.asname or alias.name] = (parsed.module or "", alias.name)
        return
    match parsed:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
            pass
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            pass
        case _:
            return
    assert isinstance(node, cst.ClassDef | cst.FunctionDef) or statement(node) is not None
    result.definitions[name] = node
    result.lines[name] = (parsed.lineno, parsed.end_lineno or parsed.lineno)
    result.names[name] = (result.module, name)
    found = [
        n for n in ast.walk(parsed) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    found.sort(key=lambda call: (call.lineno, call.col_offset))
    same = [call.func.value for call in calls_by_name(node) if isinstance(call.func, cst.Name)]
    found = [call for call in found if isinstance(call.func, ast.Name) and call.func.id != "cast"]
    assert same == [call.func.id for call in found if isinstance(call.func, ast.Name)], name
    result.calls[name] = tuple(call.lineno for call in found)


def _imports(read: cst.Module) -> tuple[cst.SimpleStatementLine, ...]:
    found: list[cst.SimpleStatementLine] = []
    for node in read.body:
        small = statement(node)
        if isinstance(small, cst.Import | cst.ImportFrom) and isinstance(
            node, cst.SimpleStatementLine
        ):
            code = cst.Module([]).code_for_node(small)
            if not code.startswith(f"from {OURS}"):
                found.append(node.with_changes(leading_lines=[]))
    return tuple(found)
