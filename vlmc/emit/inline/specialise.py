"""From the library's classes to the first draft of the program: one class for each group, with its
constructor calls led to the groups that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import libcst as cst
from torch import nn

from vlmc.emit.inline.groups import Group, Grouping
from vlmc.emit.inline.library import Origin, Source, calls_by_name, source
from vlmc.emit.inline.literals import Value, is_value, literal
from vlmc.emit.inline.program import Class, Function, Program
from vlmc.emit.inline.tree import Left, every, rewrite, statement, without_last_comma

UNMADE = "never_made_"
"""Stands before the name of a class in a call that is never reached; such calls fold away."""


def draft(grouping: Grouping) -> Program:
    """All that the model is made of: its groups, and the functions and records that these use."""
    program = Program()
    made = {group.origin for group in grouping.groups}
    used = _used([group.origin for group in grouping.groups], made)
    names = _names(grouping, used)
    for origin in used:
        groups: list[Group | None] = [*grouping.classes(origin)]
        for group in groups or [None]:
            node = _Leader(origin, group, grouping, names).led()
            define(program, node, group.name if group else names[origin])
            if group is not None:
                _fix_parameters(program, group, grouping)
    modules = dict.fromkeys(module for module, _ in used)
    program.imports = [line for module in modules for line in source(module).imports]
    return program


def _used(roots: list[Origin], made: set[Origin]) -> list[Origin]:
    """The definitions that the roots lead to, in the order met. A class that is not among those
    `made` is a record or never constructed; the latter are left out."""
    found: dict[Origin, None] = {}
    waiting = list(dict.fromkeys(roots))
    while waiting:
        origin = waiting.pop(0)
        if origin in found:
            continue
        here = source(origin[0])
        definition = here.definitions[origin[1]]
        if origin not in made and _is_module(definition):
            continue
        found[origin] = None
        for node in every(definition, cst.Name):
            if node.value in here.names:
                waiting.append(here.names[node.value])
    return list(found)


def _is_module(node: cst.CSTNode) -> bool:
    if not isinstance(node, cst.ClassDef):
        return False
    bases = [cst.Module([]).code_for_node(base.value) for base in node.bases]
    return any(base in ("nn.Module", "torch.nn.Module", "Module") for base in bases)


def _names(grouping: Grouping, used: list[Origin]) -> dict[Origin, str]:
    """Names of the definitions that have no groups: their own, after the folder's where two parts
    use the same."""
    taken = {group.name for group in grouping.groups}
    names: dict[Origin, str] = {}
    for origin in used:
        groups = grouping.classes(origin)
        if groups:
            names[origin] = groups[0].name if len(groups) == 1 else ""
            continue
        module, name = origin
        folder = module.split(".")[-2]
        longer = f"{folder}_{name}" if name.islower() else folder.title().replace("_", "") + name
        names[origin] = longer if name in taken else name
        taken.add(names[origin])
    return names


class _Leader:
    """Leads the references of one definition to what they are emitted as."""

    def __init__(
        self, origin: Origin, group: Group | None, grouping: Grouping, names: dict[Origin, str]
    ) -> None:
        self.here: Source = source(origin[0])
        self.node = self.here.definitions[origin[1]]
        self.group = group
        self.grouping = grouping
        self.names = names
        calls = calls_by_name(self.node)
        self.lines = dict(zip(calls, self.here.calls[origin[1]], strict=True))
        self.bound = {parameter.name.value for parameter in every(self.node, cst.Param)}

    def led(self) -> cst.BaseStatement:
        """The definition with its references led."""
        return cast("cst.BaseStatement", rewrite(self.node, self._lead))

    def _lead(self, original: cst.CSTNode, updated: cst.CSTNode) -> Left:
        if isinstance(updated, cst.Call) and isinstance(original, cst.Call):
            return self._call(original, updated)
        if isinstance(updated, cst.Name) and updated.value not in self.bound:
            origin = self.here.names.get(updated.value)
            name = self.names.get(origin) if origin else None
            if name == "":
                return cst.Attribute(cst.Name("nn"), cst.Name("Module"))
            if name is not None and name != updated.value:
                return updated.with_changes(value=name)
        return updated

    def _call(self, original: cst.Call, updated: cst.Call) -> cst.Call:
        name = original.func.value if isinstance(original.func, cst.Name) else ""
        origin = self.here.names.get(str(name))
        if origin is None or not _is_module(source(origin[0]).definitions[origin[1]]):
            return updated
        line = self.lines[original]
        keys = (id(self.group), line, origin), (self.here.file, line, origin)
        groups = [self.grouping.by_slot[key] for key in keys if key in self.grouping.by_slot]
        if not groups:
            return updated.with_changes(func=cst.Name(f"{UNMADE}{name}"))
        kept = [a for a in updated.args if a.keyword is None or not _folded(groups[0], a.keyword)]
        return updated.with_changes(func=cst.Name(groups[0].name), args=without_last_comma(kept))


def _folded(group: Group, keyword: cst.Name) -> bool:
    return keyword.value in group.constants


def define(program: Program, node: cst.BaseStatement, name: str | None = None) -> None:
    """Adds a definition to the program, under another name where one is given."""
    if isinstance(node, cst.FunctionDef):
        program.add_function("", node.with_changes(name=cst.Name(name or node.name.value)))
    elif isinstance(node, cst.ClassDef):
        _define_class(program, node.with_changes(name=cst.Name(name or node.name.value)))
    else:
        small = statement(node)
        assert isinstance(small, cst.Assign | cst.AnnAssign)
        target = small.target if isinstance(small, cst.AnnAssign) else small.targets[0].target
        program.aliases[name or cst.ensure_type(target, cst.Name).value] = cst.ensure_type(
            node, cst.SimpleStatementLine
        )


def _define_class(program: Program, node: cst.ClassDef) -> None:
    name = node.name.value
    members: list[str | cst.BaseStatement] = []
    for member in _body(node):
        if isinstance(member, cst.FunctionDef):
            program.add_function(name, member)
            members.append(member.name.value)
        else:
            members.append(member)
    record = any("dataclass" in _code(decorator) for decorator in node.decorators)
    form = "module" if _is_module(node) else "record" if record else "plain"
    program.classes[name] = Class(name, node, members, form)


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def _body(node: cst.ClassDef) -> Iterator[cst.BaseStatement]:
    for member in node.body.body:
        if isinstance(member, cst.BaseStatement):
            yield member


def _fix_parameters(program: Program, group: Group, grouping: Grouping) -> None:
    """Takes the arguments that are constants from the constructor, and names the classes of the
    modules that it is given."""
    constructor = program.functions.get((group.name, "__init__"))
    if constructor is None:
        return
    tables: dict[str, Value] = {
        n: v for n, v in group.constants.items() if isinstance(v, tuple) and len(v) > 1
    }
    constructor.constants.update({n: v for n, v in group.constants.items() if n not in tables})
    without(constructor, set(group.constants))
    constructor.node = _with_tables(constructor.node, tables)
    for name in group.instances[0].arguments:
        values = tuple(instance.arguments[name] for instance in group.instances)
        if is_value(values):
            constructor.columns[name] = cast("tuple[Value, ...]", values)
    types: dict[str, str] = {}
    for name, value in group.instances[0].arguments.items():
        if isinstance(value, nn.Module):
            made = grouping.of_module(value)
            if made is not None:
                types[name] = made.name

    def leave(_: cst.CSTNode, new: cst.CSTNode) -> Left:
        if isinstance(new, cst.Param) and new.name.value in types:
            return new.with_changes(annotation=cst.Annotation(cst.Name(types[new.name.value])))
        return new

    if types and len(group.instances) == 1:
        constructor.node = cast("cst.FunctionDef", rewrite(constructor.node, leave))


def _with_tables(node: cst.FunctionDef, tables: dict[str, Value]) -> cst.FunctionDef:
    """A constructor that names the tuples that it is made with, after `super().__init__()`."""
    lines = [_assignment(name, value) for name, value in tables.items()]
    body = list(node.body.body)
    place = next((i + 1 for i, line in enumerate(body) if "super()" in _code(line)), 0)
    block = node.body.with_changes(body=[*body[:place], *lines, *body[place:]])
    return node.with_changes(body=block) if lines else node


def _assignment(name: str, value: Value) -> cst.SimpleStatementLine:
    target = cst.AssignTarget(cst.Name(name))
    return cst.SimpleStatementLine([cst.Assign([target], literal(value))])


def without(function: Function, names: set[str]) -> None:
    """Takes parameters from a function's signature."""
    parameters = function.node.params

    def kept(group: tuple[cst.Param, ...] | list[cst.Param]) -> list[cst.Param]:
        left = [p for p in group if p.name.value not in names]
        if left:
            left[-1] = left[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        return left

    by_keyword = kept(list(parameters.kwonly_params))
    changed = parameters.with_changes(
        params=kept(list(parameters.params)),
        kwonly_params=by_keyword,
        star_arg=parameters.star_arg if by_keyword else cst.MaybeSentinel.DEFAULT,
    )
    function.node = function.node.with_changes(params=changed)
