"""The emitted program while it is in the making: its classes and functions, and what is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import libcst as cst

from vlmc.emit.inline.literals import UNKNOWN, Unknown, Value

Key = tuple[str, str]
"""A function: its class ("" for none) and its name. The fields of a record, or the parameters of
a class that needs no constructor, count as its `__init__`."""


@dataclass(frozen=True, slots=True)
class Objects:
    """An instance of one of these classes of the program, or None."""

    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Items:
    """A list, or a list of modules, of one type."""

    item: Type


@dataclass(frozen=True, slots=True)
class Together:
    """A tuple."""

    items: tuple[Type, ...]


Type: TypeAlias = Objects | Items | Together | Literal["foreign", "unknown"]
"""`foreign` is anything that is not ours (tensors, numbers, modules of torch)."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of an attribute of every object of a class."""

    value: Value | Unknown = UNKNOWN
    present: bool = False
    """Never None."""
    plain: bool = False
    """A number, a word or a flag; nothing that the model registers."""
    type: Type = "unknown"
    values: tuple[Value, ...] = ()
    """Where it is plain: the value of each instance, in the order of the group."""


@dataclass(slots=True)
class Class:
    """A class: its members in order, functions by name."""

    name: str
    node: cst.ClassDef
    """The statement around the members."""
    members: list[str | cst.BaseStatement]
    form: Literal["module", "record", "plain"]
    facts: dict[str, Fact] = field(default_factory=dict[str, Fact])

    def fields(self) -> dict[str, cst.AnnAssign]:
        """The fields of a record."""
        found: dict[str, cst.AnnAssign] = {}
        for member in self.members:
            if isinstance(member, cst.SimpleStatementLine):
                for small in member.body:
                    if isinstance(small, cst.AnnAssign) and isinstance(small.target, cst.Name):
                        found[small.target.value] = small
        return found if self.form == "record" else {}


@dataclass(slots=True)
class Function:
    """A function or a method, and which of its names are constants."""

    key: Key
    node: cst.FunctionDef
    constants: dict[str, Value] = field(default_factory=dict[str, Value])
    columns: dict[str, tuple[Value, ...]] = field(default_factory=dict[str, tuple[Value, ...]])
    """Of a constructor: the value of each argument for each instance of the group."""
    public: bool = False
    """Called from outside: its parameters stay as they are."""

    @property
    def decorators(self) -> set[str]:
        """Names of its decorators."""
        names = (d.decorator for d in self.node.decorators)
        return {name.value for name in names if isinstance(name, cst.Name)}

    @property
    def parameters(self) -> list[cst.Param]:
        """Its parameters but `self`: first those by position."""
        positional = list(self.node.params.params)
        if self.key[0] and "staticmethod" not in self.decorators:
            positional = positional[1:]
        return [*positional, *self.node.params.kwonly_params]


@dataclass(slots=True)
class Program:
    """All definitions, by the names that they are emitted with."""

    classes: dict[str, Class] = field(default_factory=dict[str, Class])
    functions: dict[Key, Function] = field(default_factory=dict[Key, Function])
    aliases: dict[str, cst.SimpleStatementLine] = field(
        default_factory=dict[str, cst.SimpleStatementLine]
    )
    """Assignments at the top level."""
    imports: list[cst.SimpleStatementLine] = field(default_factory=list[cst.SimpleStatementLine])

    def methods(self, owner: str) -> list[Function]:
        """The methods of a class."""
        return [function for key, function in self.functions.items() if key[0] == owner]

    def add_function(self, owner: str, node: cst.FunctionDef) -> Function:
        """Adds a function or a method."""
        function = Function((owner, node.name.value), node)
        self.functions[function.key] = function
        return function
