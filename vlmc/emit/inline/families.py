"""Functions by the calls that reach them, and how calls give arguments to parameters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import libcst as cst

from vlmc.emit.inline.program import Key, Program
from vlmc.emit.inline.usage import CallSite, Census


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a function or field of a record."""

    name: str
    place: int | None
    """Its position; None where it is given by keyword only."""
    default: cst.BaseExpression | None
    annotation: cst.Annotation | None


@dataclass(slots=True)
class Family:
    """Functions that some call cannot tell apart: what one loses, all lose."""

    keys: list[Key]
    sites: list[CallSite]


def families(census: Census) -> Iterable[Family]:
    """All functions that are called, those together that one call may reach."""
    family_of: dict[Key, Family] = {}
    for key, sites in census.sites.items():
        for site in sites:
            merged = family_of.setdefault(key, Family([key], []))
            for other in site.targets:
                more = family_of.setdefault(other, Family([other], []))
                if more is not merged:
                    merged.keys += more.keys
                    merged.sites += more.sites
                    family_of.update(dict.fromkeys(more.keys, merged))
            if not any(site is known for known in merged.sites):
                merged.sites.append(site)
    return {id(family): family for family in family_of.values()}.values()


def parameters(program: Program, key: Key) -> list[Parameter]:
    """The parameters of a function; the fields of a record for its constructor."""
    function = program.functions.get(key)
    if function is None:
        fields = program.classes[key[0]].fields()
        return [
            Parameter(n, place, fields[n].value, fields[n].annotation)
            for place, n in enumerate(fields)
        ]
    positional = len(function.parameters) - len(function.node.params.kwonly_params)
    return [
        Parameter(p.name.value, place if place < positional else None, p.default, p.annotation)
        for place, p in enumerate(function.parameters)
    ]


def bound(call: cst.Call, expected: list[Parameter]) -> dict[str, cst.Arg] | None:
    """The argument of each parameter that a call gives one; None where that cannot be said."""
    result: dict[str, cst.Arg] = {}
    positional = {p.place: p.name for p in expected if p.place is not None}
    for index, argument in enumerate(call.args):
        name = argument.keyword.value if argument.keyword else positional.get(index)
        if argument.star or name is None:
            return None
        result[name] = argument
    return result
