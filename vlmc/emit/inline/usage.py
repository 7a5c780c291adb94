"""Which names a function binds and reads, and which attributes of which classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import libcst as cst
from torch import nn

from vlmc.emit.inline.program import Function, Key, Objects, Program
from vlmc.emit.inline.tree import every
from vlmc.emit.inline.typist import Typist

_BINDERS = (
    cst.AssignTarget, cst.AnnAssign, cst.AugAssign, cst.NamedExpr, cst.For, cst.CompFor, cst.AsName,
)  # fmt: skip

_USES = (cst.Call, cst.AssignTarget, cst.AnnAssign, cst.Attribute, cst.Name)


@dataclass(slots=True)
class Names:
    """Local names: how often each is bound and read."""

    bound: Counter[str] = field(default_factory=Counter[str])
    read: Counter[str] = field(default_factory=Counter[str])


@lru_cache(maxsize=1024)
def names(node: cst.CSTNode) -> Names:
    """The names below a node. Augmented assignment both binds and reads."""
    result = Names()
    targets: set[int] = set()
    for inner in every(node, cst.Param, cst.Name, *_BINDERS):
        if isinstance(inner, cst.Param):
            result.bound[inner.name.value] += 1
        elif not isinstance(inner, cst.Name):
            target = inner.name if isinstance(inner, cst.AsName) else inner.target
            for name in _target_names(target):
                result.bound[name.value] += 1
                if not isinstance(inner, cst.AugAssign):
                    targets.add(id(name))
        elif id(inner) not in targets:
            result.read[inner.value] += 1
    return result


def _target_names(target: cst.BaseExpression) -> Iterator[cst.Name]:
    if isinstance(target, cst.Name):
        yield target
    elif isinstance(target, cst.Tuple | cst.List):
        for element in target.elements:
            yield from _target_names(element.value)


@dataclass(slots=True)
class CallSite:
    """A call of functions of the program."""

    caller: Key
    call: cst.Call
    targets: tuple[Key, ...]


@dataclass(slots=True)
class Usage:
    """What one function does with the rest of the program."""

    calls: list[CallSite] = field(default_factory=list[CallSite])
    opened: set[str] = field(default_factory=set[str])
    """Names of methods that may be called in ways that cannot be seen."""
    handed_on: set[Key] = field(default_factory=set[Key])
    """Functions that are passed around instead of called."""
    reads: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Attributes read, each with its class; the class "" stands for any."""


def usage(function: Function, program: Program) -> Usage:
    """What a function calls and reads."""
    typist = Typist(function, program)
    result = Usage()
    called: set[int] = set()
    stored: set[int] = set()
    for node in every(function.node, *_USES):
        match node:
            case cst.Call():
                called.add(id(node.func))
                targets = typist.targets(node)
                if targets is None:
                    func = node.func
                    name = func.attr.value if isinstance(func, cst.Attribute) else "forward"
                    if name == "forward" or not hasattr(nn.Module, name):
                        result.opened.update((name, "forward"))
                elif targets:
                    result.calls.append(CallSite(function.key, node, targets))
            case cst.AssignTarget() | cst.AnnAssign():
                stored.update(id(part) for part in _attribute_targets(node.target))
            case cst.Attribute() if id(node) not in stored:
                _read(node, typist, result, id(node) in called)
            case cst.Name() if id(node) not in called and ("", node.value) in program.functions:
                result.handed_on.add(("", node.value))
            case _:
                pass
    return result


def _attribute_targets(target: cst.BaseExpression) -> Iterator[cst.Attribute]:
    if isinstance(target, cst.Attribute):
        yield target
    elif isinstance(target, cst.Tuple | cst.List):
        for element in target.elements:
            yield from _attribute_targets(element.value)


def _read(node: cst.Attribute, typist: Typist, result: Usage, called: bool) -> None:
    kind = typist.type(node.value)
    name = node.attr.value
    if kind == "unknown":
        result.reads.add(("", name))
    if not isinstance(kind, Objects):
        return
    for owner in kind.names:
        result.reads.add((owner, name))
        method = typist.program.functions.get((owner, name))
        if method is not None and not called and "property" not in method.decorators:
            result.handed_on.add(method.key)


@dataclass(slots=True)
class Census:
    """The usage of all functions together."""

    sites: dict[Key, list[CallSite]] = field(default_factory=dict[Key, list[CallSite]])
    opened: set[str] = field(default_factory=set[str])
    handed_on: set[Key] = field(default_factory=set[Key])
    reads: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    def reads_attribute(self, owner: str, name: str) -> bool:
        """Whether an attribute of a class may be read anywhere."""
        return (owner, name) in self.reads or ("", name) in self.reads


def census(program: Program) -> Census:
    """Counts the usage of every function of the program."""
    result = Census()
    for function in program.functions.values():
        used = usage(function, program)
        result.opened |= used.opened
        result.handed_on |= used.handed_on
        result.reads |= used.reads
        for site in used.calls:
            for target in site.targets:
                result.sites.setdefault(target, []).append(site)
    return result
