"""Each list of an extension point agrees with the folders, in both directions."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from vlmc.components.catalog import CATALOG
from vlmc.spec import presets
from vlmc.spec.reader import plain

COMPONENTS = Path(__file__).parents[2] / "vlmc" / "components"
ROLE_FOLDERS = ("encoder", "adapter", "fusion", "language", "head")


def test_every_component_folder_is_in_the_catalog_and_back() -> None:
    folders = {
        f"{role}.{folder.name}"
        for role in ROLE_FOLDERS
        for folder in (COMPONENTS / role).iterdir()
        if (folder / "spec.py").exists()
    }
    listed = {entry.module.rsplit(".module:", 1)[0] for entry in CATALOG}
    assert folders == listed


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: f"{entry.role}-{entry.kind}")
def test_a_component_is_where_the_catalog_says(entry: object) -> None:
    path, name = entry.module.split(":")  # type: ignore[attr-defined]
    module = getattr(import_module(f"vlmc.components.{path}"), name)
    parameters = inspect.signature(module.__init__).parameters.values()
    options = [p for p in parameters if p.name != "self"]
    if module.__init__ is not object.__init__ and "__init__" in vars(module):
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in options)
    assert module.__doc__


def test_kinds_are_unique_within_a_role() -> None:
    names = [(entry.role, entry.kind) for entry in CATALOG]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("role", "name"), [(r, n) for r in presets.FOLDERS for n in presets.names(r)]
)
def test_every_figure_of_a_preset_names_its_source(role: str, name: str) -> None:
    data = plain(presets.document(role, name))
    sourced = {field for source in data["sources"] for field in source["fields"]}
    assert data["about"]
    assert all(source["from"] for source in data["sources"])
    assert sourced == set(data["values"]), "sources and values name different fields"


def test_every_field_of_every_component_has_a_description() -> None:
    for entry in CATALOG:
        for name, field in entry.spec.model_fields.items():
            if name != "kind":
                assert field.description, f"{entry.role} {entry.kind}: {name}"
