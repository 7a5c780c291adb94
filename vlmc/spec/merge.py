"""Laying one tree over another: `extends`, presets and overrides."""

from __future__ import annotations

from vlmc.diagnostics import Span
from vlmc.spec.tree import Mapping, Scalar, Sequence, Tree

IDENTITY = ("kind", "preset")
"""Keys that say what a mapping is: where they change, the fields of the former go."""


def overlay(base: Tree, top: Tree) -> Tree:
    """`top` over `base`: mappings key by key, everything else replaced."""
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    if any(_differs(base, top, key) for key in IDENTITY):
        return top
    result = Mapping(dict(base.entries), top.span, dict(base.keys))
    for key, value in top.entries.items():
        former = base.entries.get(key)
        result.entries[key] = value if former is None else overlay(former, value)
        result.keys[key] = top.keys[key]
    return result


def _differs(base: Mapping, top: Mapping, key: str) -> bool:
    old, new = base.entries.get(key), top.entries.get(key)
    if not (isinstance(old, Scalar) and isinstance(new, Scalar)):
        return False
    return old.value != new.value


def moved(tree: Tree, span: Span) -> Tree:
    """A copy of `tree` that stands at `span` throughout: a preset's values stand where the preset
    is named."""
    if isinstance(tree, Scalar):
        return Scalar(tree.value, span, tree.quoted)
    if isinstance(tree, Sequence):
        return Sequence([moved(item, span) for item in tree.items], span)
    return Mapping(
        {key: moved(value, span) for key, value in tree.entries.items()},
        span,
        dict.fromkeys(tree.entries, span),
    )
