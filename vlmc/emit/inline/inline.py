"""The inliner: from a built model to the text of its definitions, in order."""

from __future__ import annotations

import libcst as cst

from vlmc.emit.inline.facts import called_by_torch, observe
from vlmc.emit.inline.groups import Grouping
from vlmc.emit.inline.program import Program
from vlmc.emit.inline.prune import prune
from vlmc.emit.inline.signatures import settle
from vlmc.emit.inline.simplify import simplify
from vlmc.emit.inline.specialise import UNMADE, define, draft
from vlmc.emit.inline.tree import every
from vlmc.emit.inline.typist import returned
from vlmc.emit.inline.usage import census


def program_of(grouping: Grouping, public: list[str], added: list[cst.BaseStatement]) -> Program:
    """The program of a model, with the functions `added` beside it, reduced to
    what they and the methods of the `public` classes need."""
    program = draft(grouping)
    for node in added:
        define(program, node)
        if isinstance(node, cst.FunctionDef):
            program.functions["", node.name.value].public = True
    observe(program, grouping)
    for name in called_by_torch(grouping):
        program.functions[name, "forward"].public = True
    handed_out: set[str] = set()
    for name in public:
        for method in program.methods(name):
            method.public = method.key[1] != "__init__"
            kind = returned(program, method.key) if method.public else "foreign"
            handed_out |= getattr(kind, "names", frozenset[str]())
    reduced(program, handed_out)
    return program


def reduced(program: Program, handed_out: set[str]) -> None:
    """Simplifies a program until nothing changes. Records that are `handed_out` to whoever calls
    it keep the fields that they are given."""
    changed = True
    while changed:
        for function in program.functions.values():
            simplify(function, program)
        counted = census(program)
        changed = settle(program, counted, handed_out)
        changed = prune(program, counted) or changed


def ordered(program: Program, roots: list[str]) -> list[str]:
    """The names of the definitions that the roots need, each after what it refers to."""
    needs: dict[str, list[str]] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop(0)
        if name in needs:
            continue
        needs[name] = _references(program, name)
        waiting.extend(needs[name])
    order: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        for other in needs[name]:
            visit(other)
        order.append(name)

    for root in roots:
        visit(root)
    return order


def _references(program: Program, name: str) -> list[str]:
    """The definitions that a definition refers to, in the order met."""
    known = {*program.classes, *program.aliases, *(k[1] for k in program.functions if not k[0])}
    found: dict[str, None] = {}
    for node in every(definition(program, name), cst.Name):
        assert not node.value.startswith(UNMADE), f"{name}: {node.value} does not fold away"
        if node.value in known and node.value != name:
            found[node.value] = None
    return list(found)


def definition(program: Program, name: str) -> cst.BaseStatement:
    """A definition as one statement."""
    if name in program.aliases:
        return program.aliases[name]
    if ("", name) in program.functions:
        return program.functions["", name].node
    class_ = program.classes[name]
    members = [program.functions[name, m].node if isinstance(m, str) else m for m in class_.members]
    return class_.node.with_changes(body=class_.node.body.with_changes(body=members))
