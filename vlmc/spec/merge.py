"""Laying one tree over another: `extends`, presets and overrides."""

from __future__ import annotations

from vlmc.components.catalog import kinds
from vlmc.diagnostics import Span
from vlmc.ir import Role
from vlmc.spec import presets
from vlmc.spec.tree import Mapping, Scalar, Sequence, Tree

COMPONENTS: tuple[Role, ...] = ("encoder", "adapter", "language", "fusion", "head")
"""The sections that describe a component, language before those that look at it."""

_IDENTITY = ("kind", "preset")
"""Keys that say what a mapping is: where they change, the fields of the former go."""


def overlay(base: Tree, top: Tree) -> Tree:
    """`top` over `base`: mappings key by key, everything else replaced."""
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    if any(_differs(_word(base, key), _word(top, key)) for key in _IDENTITY):
        return top
    result = Mapping(dict(base.entries), top.span, dict(base.keys))
    for key, value in top.entries.items():
        former = base.entries.get(key)
        result.entries[key] = value if former is None else overlay(former, value)
        result.keys[key] = top.keys[key]
    return result


def derive(base: Tree, top: Tree) -> Tree:
    """The document `top` over the document `base`.

    A component that becomes another kind or another preset starts anew; one word in the base
    stands for its mapping, so that fields can be laid over it.
    """
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    below = Mapping(dict(base.entries), base.span, dict(base.keys))
    if isinstance(former := below.entries.get("target"), Scalar):
        below.entries["target"] = spelled_out("target", former)
    for role in COMPONENTS:
        former, section = below.entries.get(role), top.entries.get(role)
        if isinstance(former, Scalar):
            below.entries[role] = former = spelled_out(role, former)
        if isinstance(former, Mapping) and isinstance(section, Mapping):
            preset, kind = _word(section, "preset"), _word(section, "kind")
            another = preset is not None and preset != _word(former, "preset")
            if another or _differs(_kind(role, former), kind):
                del below.entries[role]
    return overlay(below, top)


def spelled_out(section: str, tree: Scalar) -> Tree:
    """One word as the mapping that it stands for; the word itself where it is unknown."""
    word, key = tree.value, None
    if not isinstance(word, str):
        return tree
    if section == "target":
        key = "hardware"
    elif section == "fusion" and word in ("early", "mid", "late"):
        key = "point"
    for role in COMPONENTS:
        if role == section and word in presets.names(role):
            key = "preset"
        elif role == section and word in kinds(role):
            key = "kind"
    return tree if key is None else Mapping({key: tree}, tree.span, {key: tree.span})


def on_preset(role: Role, tree: Mapping) -> Mapping:
    """A component over the fields of its preset, which stand where the preset is named."""
    name = tree.entries.get("preset")
    if not isinstance(name, Scalar):
        return tree
    values = presets.values(role, str(name.value))
    base = Mapping(
        {key: moved(value, name.span) for key, value in values.items()},
        name.span,
        dict.fromkeys(values, name.span),
    )
    result = overlay(base, tree)
    assert isinstance(result, Mapping)
    return result


def moved(tree: Tree, span: Span) -> Tree:
    """A copy of `tree` that stands at `span` throughout."""
    if isinstance(tree, Scalar):
        return Scalar(tree.value, span, tree.quoted)
    if isinstance(tree, Sequence):
        return Sequence([moved(item, span) for item in tree.items], span)
    return Mapping(
        {key: moved(value, span) for key, value in tree.entries.items()},
        span,
        dict.fromkeys(tree.entries, span),
    )


def _word(tree: Mapping, key: str) -> str | None:
    entry = tree.entries.get(key)
    return entry.value if isinstance(entry, Scalar) and isinstance(entry.value, str) else None


def _differs(old: str | None, new: str | None) -> bool:
    return old is not None and new is not None and old != new


def _kind(role: Role, tree: Mapping) -> str | None:
    """The kind of a component as far as it is written: by itself or by its preset."""
    kind, preset = _word(tree, "kind"), _word(tree, "preset")
    if kind is None and preset in presets.names(role):
        return presets.kind(role, str(preset))
    return kind
