"""Which instances share one emitted class.

Instances that differ in what shapes the code (words, flags, the presence of an option) get classes
of their own; those that differ in numbers share one, with the numbers as its parameters.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

from torch import nn

from vlmc.emit.inline.library import Origin, source
from vlmc.emit.inline.literals import Value, is_value, same
from vlmc.emit.inline.record import Instance, Recording

Slot = tuple[Hashable, int, Origin]
"""A call in the source: the group or the function that it is part of, its line, and its class."""


@dataclass(slots=True, eq=False)
class Group:
    """Instances of one class that the emitted model has one class for."""

    origin: Origin
    instances: list[Instance]
    name: str = ""
    constants: dict[str, Value] = field(default_factory=dict[str, Value])
    """Arguments with one value throughout: no parameters of the emitted class."""


@dataclass(slots=True)
class Grouping:
    """All groups, and which one each call in the source and each instance leads to."""

    groups: list[Group]
    by_slot: dict[Slot, Group]
    by_instance: dict[int, Group]
    by_module: dict[int, Group]

    def of_module(self, module: nn.Module) -> Group | None:
        """The group of a module; None for torch's own."""
        return self.by_module.get(id(module))

    def of(self, instance: Instance) -> Group:
        """The group of an instance."""
        return self.by_instance[id(instance)]

    def classes(self, origin: Origin) -> list[Group]:
        """The groups of one class of the library."""
        return [group for group in self.groups if group.origin == origin]


def origin_of(kind: type[nn.Module]) -> Origin:
    """Where a class is defined."""
    return kind.__module__, kind.__name__


def group(recording: Recording) -> Grouping:
    """The groups of a model, owners before what they are made of."""
    by_kind: dict[type[nn.Module], list[Instance]] = {}
    makers: dict[type[nn.Module], set[type[nn.Module]]] = {}
    for instance in recording.instances:
        by_kind.setdefault(instance.kind, []).append(instance)
        before = makers.setdefault(instance.kind, set())
        if instance.parent is not None:
            before.add(instance.parent.kind)
    result = Grouping([], {}, {}, {})
    order = list(by_kind)
    sorter = TopologicalSorter({k: sorted(makers[k], key=order.index) for k in order})
    for kind in sorter.static_order():
        _split(origin_of(kind), by_kind[kind], result)
    _name(result)
    return result


def _split(origin: Origin, instances: list[Instance], result: Grouping) -> None:
    slots: dict[Slot, list[Instance]] = {}
    for instance in instances:
        slots.setdefault(slot_of(instance, result), []).append(instance)
    alike: dict[Hashable, Group] = {}
    for slot, members in slots.items():
        key = tuple(
            (name, _form([m.arguments[name] for m in members])) for name in members[0].arguments
        )
        if key not in alike:
            alike[key] = Group(origin, [])
            result.groups.append(alike[key])
        alike[key].instances.extend(members)
        result.by_slot[slot] = alike[key]
        for member in members:
            result.by_instance[id(member)] = alike[key]
            result.by_module[id(member.module)] = alike[key]
    for made in alike.values():
        made.constants = _constants(made.instances)


def slot_of(instance: Instance, grouping: Grouping) -> Slot:
    """The call that made an instance."""
    origin = origin_of(instance.kind)
    if instance.parent is None:
        return ("model", instance.part), 0, origin
    owner = grouping.of(instance.parent)
    here = source(owner.origin[0])
    if instance.file == here.file and here.around(instance.line) == owner.origin[1]:
        return id(owner), instance.line, origin
    return instance.file, instance.line, origin


def _form(values: list[object]) -> Hashable:
    """What of an argument shapes the code. One call with several forms leaves it open."""
    forms = {_form_of(value) for value in values}
    return forms.pop() if len(forms) == 1 else "varies"


def _form_of(value: object) -> Hashable:
    if value is None or isinstance(value, str | bool):
        return repr(value)
    return type(value).__name__


def _constants(instances: list[Instance]) -> dict[str, Value]:
    first = instances[0].arguments
    return {
        name: value
        for name, value in first.items()
        if is_value(value) and all(same(value, other.arguments[name]) for other in instances)
    }  # pyright: ignore[reportReturnType]


def _name(grouping: Grouping) -> None:
    """Plain names where one will do; else the part in front, or what the owner calls it."""
    taken: set[str] = set()
    origins: dict[Origin, None] = dict.fromkeys(g.origin for g in grouping.groups)
    for origin in origins:
        members = grouping.classes(origin)
        for group_ in members:
            group_.name = next(n for n in _names(group_, members) if n not in taken)
            taken.add(group_.name)


def _names(group_: Group, members: list[Group]) -> Iterable[str]:
    plain = group_.origin[1]
    if len(members) == 1:
        yield plain
    parts = list(dict.fromkeys(instance.part for instance in group_.instances))
    prefix = "".join(part.title() for part in parts)
    others = [
        "".join(dict.fromkeys(instance.part.title() for instance in other.instances))
        for other in members
        if other is not group_
    ]
    if len(parts) > 1:
        yield plain
    if prefix not in others:
        yield prefix + plain
    for name in dict.fromkeys(instance.name for instance in group_.instances):
        yield prefix + _joined([word.title() for word in name.split("_")], plain)
    number = 2
    while True:
        yield f"{prefix}{plain}{number}"
        number += 1


def _joined(words: list[str], plain: str) -> str:
    """An attribute's words before a class's name: encoder_layers of a Block are an EncoderBlock."""
    if words[-1] in ("Layers", "Layer", "Blocks", "Block") or plain.endswith(words[-1]):
        words = words[:-1]
    return "".join(words) + plain
