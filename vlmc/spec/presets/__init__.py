"""Presets: published components as data files, each figure with its source."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vlmc.spec.reader import Mapping, Scalar, Tree, parse

FOLDERS = {"encoder": "encoders", "language": "languages"}
"""The roles that have presets, and the folder of each."""

_HERE = Path(__file__).parent


@cache
def names(role: str) -> tuple[str, ...]:
    """The presets of a role, in alphabetical order."""
    if role not in FOLDERS:
        return ()
    return tuple(sorted(path.stem for path in (_HERE / FOLDERS[role]).glob("*.yaml")))


@cache
def document(role: str, name: str) -> Mapping:
    """The whole data file of a preset: `about`, `sources` and `values`."""
    path = _HERE / FOLDERS[role] / f"{name}.yaml"
    tree = parse(path.read_text(encoding="utf-8"), f"preset {name}")
    assert isinstance(tree, Mapping)
    return tree


def kind(role: str, name: str) -> str:
    """The kind of component that a preset describes."""
    tree = values(role, name)["kind"]
    assert isinstance(tree, Scalar)
    return str(tree.value)


def values(role: str, name: str) -> dict[str, Tree]:
    """The fields that a preset gives."""
    tree = document(role, name).entries["values"]
    assert isinstance(tree, Mapping)
    return tree.entries
