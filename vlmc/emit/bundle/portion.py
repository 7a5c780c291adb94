"""One module of the runtime, taken apart: its imports by what becomes of them, and its code."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from typing_extensions import override

OURS = "vlmc"
Taken = tuple[str, str]
"""A module of ours, and a name in it."""


class Unportable(Exception):
    """A module that cannot become a part of one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """One module."""

    name: str
    about: str
    """Its docstring."""
    ours: frozenset[Taken]
    """What it takes from vlmc at its top level."""
    later: frozenset[Taken]
    """What it takes for types alone, or when one of its functions runs."""
    imports: tuple[str, ...]
    """Lines that import what is not ours."""
    for_types: tuple[str, ...]
    """Those under TYPE_CHECKING."""
    body: str
    defined: frozenset[str]
    """Names that its code defines at the top level."""

    @property
    def bound(self) -> dict[str, str]:
        """Names that its imports bind, with what each stands for."""
        return {name: what for line in self.imports for name, what in bound(line)}


def portion(name: str, text: str) -> Portion:
    """Takes the module `name` apart.

    Raises Unportable where it imports vlmc in a way that loses its meaning in one file.
    """
    tree = cst.parse_module(text)
    about = ast.get_docstring(ast.parse(text)) or ""
    ours: set[Taken] = set()
    later: set[Taken] = set()
    imports: list[str] = []
    for_types: list[str] = []
    kept: list[cst.SimpleStatementLine | cst.BaseCompoundStatement] = []
    for index, node in enumerate(tree.body):
        if index == 0 and about:
            continue
        if isinstance(node, cst.If) and _code(node.test) == "TYPE_CHECKING":
            _sort(name, _statements(node.body), later, for_types)
        elif isinstance(node, cst.SimpleStatementLine) and _is_import(node):
            _sort(name, [node], ours, imports)
        else:
            found = node.visit(_WithoutOurs(name, later))
            assert isinstance(found, cst.SimpleStatementLine | cst.BaseCompoundStatement)
            kept.append(found)
    body = cst.Module(kept).code.strip("\n") + "\n" if kept else ""
    lines = tuple(line for line in imports if line != "from __future__ import annotations")
    return Portion(
        name=name,
        about=about,
        ours=frozenset(ours),
        later=frozenset(later),
        imports=lines,
        for_types=tuple(for_types),
        body=body,
        defined=_defined(name, body),
    )


def _sort(
    name: str,
    statements: list[cst.SimpleStatementLine],
    ours: set[Taken],
    others: list[str],
) -> None:
    for statement in statements:
        for small in statement.body:
            line = _code(small)
            taken = _of_ours(name, line)
            if taken is None:
                others.append(line)
            else:
                ours |= taken


def _of_ours(name: str, line: str) -> set[Taken] | None:
    """What an import takes from vlmc; None where it is about something else."""
    (node,) = ast.parse(line).body
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == OURS:
        renamed = [alias.name for alias in node.names if alias.asname or alias.name == "*"]
        if renamed:
            raise Unportable(f"{name}: {line}: {renamed[0]} has one name in one file")
        return {(node.module or "", alias.name) for alias in node.names}
    if isinstance(node, ast.Import) and any(a.name.split(".")[0] == OURS for a in node.names):
        raise Unportable(f"{name}: {line}: import the names, there is no module to qualify them")
    if isinstance(node, ast.ImportFrom) and node.level:
        raise Unportable(f"{name}: {line}: a relative import")
    return None


class _WithoutOurs(cst.CSTTransformer):
    """Leaves out imports of ours within functions: in one file everything is there."""

    def __init__(self, name: str, taken: set[Taken]) -> None:
        super().__init__()
        self.name = name
        self.taken = taken

    @override
    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.RemovalSentinel:
        if _is_import(updated_node):
            found = [_of_ours(self.name, _code(one)) for one in updated_node.body]
            self.taken.update(*(one for one in found if one is not None))
            if None not in found:
                return cst.RemoveFromParent()
        return updated_node


def _is_import(node: cst.SimpleStatementLine) -> bool:
    return all(isinstance(small, cst.Import | cst.ImportFrom) for small in node.body)


def _statements(block: cst.BaseSuite) -> list[cst.SimpleStatementLine]:
    return [node for node in block.body if isinstance(node, cst.SimpleStatementLine)]


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def bound(line: str) -> Iterator[tuple[str, str]]:
    """The names that an import binds, with what each stands for."""
    (node,) = ast.parse(line).body
    assert isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names:
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        whole = alias.asname is not None or bool(module)
        name = alias.asname or (alias.name if whole else alias.name.split(".")[0])
        yield name, module + (alias.name if whole else name)


def _defined(name: str, body: str) -> frozenset[str]:
    found: list[str] = []
    for node in ast.parse(body).body:
        match node:
            case ast.ClassDef(name=own) | ast.FunctionDef(name=own):
                found.append(own)
            case ast.Assign(targets=targets):
                found += [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=own)):
                found.append(own)
            case _:
                pass
    for one in found:
        if found.count(one) > 1 or hasattr(builtins, one):
            raise Unportable(f"{name}: {one} is defined twice, or is a builtin")
    return frozenset(found)
