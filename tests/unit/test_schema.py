"""The JSON Schema accepts what the compiler accepts, and its documents are current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from vlmc.components.catalog import CATALOG
from vlmc.hardware import names as devices
from vlmc.spec import presets
from vlmc.spec.reader import parse, plain
from vlmc.spec.reference import language_page
from vlmc.spec.schema import ROLES, json_schema

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
REFRESH = "run: python -m vlmc.spec.reference docs"

BASE = {"encoder": "clip-vit-l-14-336", "adapter": "mlp", "language": "vicuna-7b-v1.5"}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json_schema()


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft202012Validator:
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_spec_is_valid(path: Path, validator: Draft202012Validator) -> None:
    data = plain(parse(path.read_text(encoding="utf-8"), str(path)))
    assert [error.message for error in validator.iter_errors(data)] == []


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": {"preset": "clip-vit-l-14-336", "frozen": True, "heads": 8}},
        {"fusion": "late"},
        {"fusion": {"point": "mid", "every": 4}},
        {"fusion": {"token": 3}},
        {"target": "t4"},
        {"target": {"hardware": "t4", "precision": {"default": "fp16", "head": "fp32"}}},
        {"target": {"hardware": "t4", "parallel": {"tensor": "auto", "encoder": {"tensor": 2}}}},
        {"training": {"stages": [{"name": "a", "train": ["adapter"], "lr": 1e-3}]}},
        {"extends": "other.yaml", "target": {"count": 2}, "fusion": {"every": 2}},
    ],
)
def test_good_designs_are_valid(change: dict[str, Any], validator: Draft202012Validator) -> None:
    assert validator.is_valid(BASE | change)


@pytest.mark.parametrize(
    "change",
    [
        {"selct": {}},
        {"schema": 2},
        {"name": "../up"},
        {"encoder": "clip-vit-l-336"},
        {"encoder": {"frozen": "no", "preset": "clip-vit-l-14-336"}},
        {"encoder": {"preset": "nfnet-f6", "patch_size": 14}},
        {"encoder": {"preset": "nfnet-f6", "kind": "vit"}},
        {"encoder": {"queries": 3}},
        {"adapter": {"kind": "mlp", "layer": 2}},
        {"adapter": {"queries": 32}},
        {"adapter": {"kind": "mlp", "layers": 0}},
        {"adapter": {"kind": "mlp", "activation": "gelu_new"}},
        {"language": {"preset": "vicuna-7b-v1.5", "positions": {"kind": "mrope"}}},
        {"target": {"hardware": "h100"}},
        {"target": {"count": 2}},
        {"token_budget": {"images": -1}},
        {"training": {"stages": [{"train": ["adapter"], "lr": 1e-3}]}},
        {"training": {"stages": [{"name": "a", "train": [], "lr": 1e-3}]}},
    ],
)
def test_bad_designs_are_not(change: dict[str, Any], validator: Draft202012Validator) -> None:
    assert not validator.is_valid(BASE | change)


def test_a_design_needs_an_encoder_and_a_language(validator: Draft202012Validator) -> None:
    assert not validator.is_valid({"encoder": "clip-vit-l-14-336"})
    assert not validator.is_valid({"language": "vicuna-7b-v1.5"})
    assert validator.is_valid({"extends": "other.yaml"})


def test_an_editor_can_complete_every_name(schema: dict[str, Any]) -> None:
    definitions, properties = schema["$defs"], schema["properties"]
    assert set(ROLES) <= set(properties)
    for entry in CATALOG:
        described = definitions[f"{entry.role}.{entry.kind}"]
        assert described["additionalProperties"] is False
        assert set(described["properties"]) - {"preset"} == set(entry.spec.model_fields)
        for field in described["properties"].values():
            assert field["description"]
    for role in ROLES:
        words = properties[role]["anyOf"][0]["enum"]
        assert set(presets.names(role)) <= set(words)
        assert len(words) == len(set(words))
    hardware = properties["target"]["anyOf"][1]["properties"]["hardware"]
    assert hardware["anyOf"][0]["enum"] == list(devices())


def test_no_reference_leads_out_of_the_schema(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    for role in ROLES:
        text = text.replace(f'"#/$defs/{role}.', "")
    assert "$ref" in text
    assert "#/" not in text
    assert "title" not in text.replace('"title": "A vlmc spec"', "")


def test_the_committed_documents_are_current(schema: dict[str, Any]) -> None:
    docs = ROOT / "docs"
    assert (docs / "language.md").read_text(encoding="utf-8") == language_page(), REFRESH
    committed = json.loads((docs / "vlmc.schema.json").read_text(encoding="utf-8"))
    assert committed == schema, REFRESH
