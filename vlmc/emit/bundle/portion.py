"""One module of the runtime, taken apart: its imports by what becomes of them, and its code."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass

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
    tree = ast.parse(text)
    ours: set[Taken] = set()
    later: set[Taken] = set()
    imports: list[str] = []
    for_types: list[str] = []
    left_out: list[ast.stmt] = []
    for node in tree.body:
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        here = isinstance(node, ast.Import | ast.ImportFrom)
        if typing or here or (node is tree.body[0] and isinstance(node, ast.Expr)):
            left_out.append(node)
        for found in _imports(node):
            taken = _of_ours(name, found)
            if taken is not None:
                (ours if here else later).update(taken)
                left_out.append(found)
            elif typing or here:
                (for_types if typing else imports).append(ast.unparse(found))
    return Portion(
        name=name,
        about=ast.get_docstring(tree) or "",
        ours=frozenset(ours),
        later=frozenset(later),
        imports=tuple(line for line in imports if not line.startswith("from __future__")),
        for_types=tuple(for_types),
        body=_without(name, text, left_out),
        defined=_defined(name, [node for node in tree.body if node not in left_out]),
    )


def bound(line: str) -> Iterator[tuple[str, str]]:
    """The names that an import binds, with what each stands for."""
    (node,) = ast.parse(line).body
    assert isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names:
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        whole = alias.asname is not None or bool(module)
        name = alias.asname or (alias.name if whole else alias.name.split(".")[0])
        yield name, module + (alias.name if whole else name)


def _imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports in a statement: they are statements, too, so that no expression is searched."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    for block in ("body", "handlers", "orelse", "finalbody", "cases"):
        for inner in getattr(node, block, ()):
            yield from _imports(inner)


def _of_ours(name: str, node: ast.Import | ast.ImportFrom) -> set[Taken] | None:
    """What an import takes from vlmc; None where it is about something else."""
    line = ast.unparse(node)
    if isinstance(node, ast.Import):
        if any(alias.name.split(".")[0] == OURS for alias in node.names):
            raise Unportable(f"{name}: {line}: import the names, there is no module to name them")
        return None
    if node.level:
        raise Unportable(f"{name}: {line}: a relative import")
    if (node.module or "").split(".")[0] != OURS:
        return None
    renamed = [alias.name for alias in node.names if alias.asname or alias.name == "*"]
    if renamed:
        raise Unportable(f"{name}: {line}: {renamed[0]} has one name in one file")
    return {(node.module or "", alias.name) for alias in node.names}


def _without(name: str, text: str, left_out: list[ast.stmt]) -> str:
    """The text without statements, which stand on lines of their own."""
    lines = text.splitlines(keepends=True)
    for node in left_out:
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        rest = lines[first][: node.col_offset] + lines[last - 1][node.end_col_offset :]
        if rest.split("#")[0].strip() and lines[first]:
            raise Unportable(f"{name}: line {node.lineno}: an import has a line of its own")
        lines[first:last] = [""] * (last - first)
    return "".join(lines).strip("\n") + "\n"


def _defined(name: str, code: list[ast.stmt]) -> frozenset[str]:
    found: list[str] = []
    for node in code:
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
