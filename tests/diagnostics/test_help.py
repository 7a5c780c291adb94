"""What a diagnostic answers: where it points, and a help that can be pasted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.diagnostics.test_positions import diagnose as diagnose_file
from tests.diagnostics.test_positions import fault
from tests.diagnostics.test_rules import (
    ENCODER,
    FROZEN,
    LANGUAGE,
    codes,
    design,
    diagnose,
    mended,
    target,
)
from vlmc.spec.draft import draft
from vlmc.spec.reader import parse

PAIR: dict[str, Any] = {
    "kind": "encoder_decoder", "width": 32, "layers": 2, "heads": 4, "hidden": 64,
    "vocabulary": 100,
}  # fmt: skip
STREAM: dict[str, Any] = {
    "kind": "encoder", "width": 32, "layers": 2, "heads": 4, "hidden": 64, "vocabulary": 100,
    "context": 64,
}  # fmt: skip
REGIONS: dict[str, Any] = {"kind": "regions", "count": 4, "width": 32}
TRAINED = "encoder: clip-vit-l-14-336\ntarget: {hardware: t4, workload: {mode: train}"
TAIL = "adapter: mlp\nlanguage: vicuna-7b-v1.5\n"


@pytest.mark.parametrize(
    ("sections", "kind"),
    [
        ({}, "placeholder"),
        ({"language": PAIR}, "prefix"),
        ({"language": STREAM}, "single_stream"),
        ({"language": STREAM, "encoder": REGIONS}, "single_stream"),
        ({"language": PAIR, "fusion": "mid"}, "query_prefix"),
    ],
)
def test_the_usual_fusion_fits_its_neighbours(sections: dict[str, Any], kind: str) -> None:
    text = yaml.safe_dump(design(**sections))
    found = draft(parse(text, "x"), "x", default_name="x")
    assert found.sections["fusion"].kind_name == kind
    if "fusion" not in sections:
        assert codes(design(**sections)) == []


def test_a_fusion_that_nothing_wrote_is_answered_where_the_language_stands(tmp_path: Path) -> None:
    text = "encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: bert-base-uncased\nfusion: late\n"
    (found,) = [d for d in diagnose_file(tmp_path, text) if d.code == "VLMC121"]
    assert (found.span.line, found.help) == (4, "fusion: single_stream")
    text = "encoder: {kind: regions}\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n"
    (found,) = diagnose_file(tmp_path, text)
    assert (found.code, found.span.line) == ("VLMC116", 1)
    assert found.help == "language: bert-base-uncased"
    repaired = text.replace("vicuna-7b-v1.5", "bert-base-uncased")
    assert diagnose_file(tmp_path, repaired) == []


BASE = (
    "encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: {width: 128, heads: 32, layers: 2, "
    "hidden: 64, vocabulary: 100, context: 4096}\n"
)


def test_a_derived_value_is_pointed_at_before_its_base(tmp_path: Path) -> None:
    text = "extends: base.yaml\nlanguage: {width: 96}\n"
    (found,) = diagnose_file(tmp_path, text, base=BASE)
    assert (found.code, fault(found), found.help) == ("VLMC108", "96", "heads: 24")
    base = "encoder: clip-vit-l-14-336\n" + TAIL + "target: {hardware: t4, count: 2, "
    base += "precision: fp16, workload: {batch: 8}}\n"
    assert diagnose_file(tmp_path, base) == []
    text = "extends: base.yaml\ntarget: {count: 1}\n"
    (found,) = diagnose_file(tmp_path, text, base=base)
    assert (found.code, fault(found)) == ("VLMC152", "1")


@pytest.mark.parametrize("fields", [{"width": 12, "heads": 4}, {"width": 15, "heads": 3}])
def test_rotary_help_makes_the_channels_even(fields: dict[str, int]) -> None:
    document = design(language=fields)
    (found,) = [d for d in diagnose(document) if d.code == "VLMC108"]
    found = type(found)(code=found.code, message="", span=found.span, path=("language", "heads"),
                        help=found.help)  # fmt: skip
    assert "VLMC108" not in codes(mended(document, found))


def test_images_that_cross_attention_holds_are_counted() -> None:
    """2e9 images of 64 tokens of 1,536 channels fill no machine that is built."""
    document = {
        "encoder": "nfnet-f6",
        "adapter": "perceiver_resampler",
        "fusion": "gated_cross_attention",
        "language": "chinchilla-1.4b",
        "token_budget": {"images": 200, "text": 256},
        "target": {"hardware": "a100-80gb", "workload": {"batch": 1}},
    }
    assert codes(document) == []
    document["token_budget"] = {"images": 2_000_000_000, "text": 256}
    (found,) = [one for one in diagnose(document) if one.code == "VLMC152"]
    assert f"{2e9 * 64 * 1536 * 2 / 1e9:,.0f}"[:6] in (found.got or "")


def stage(name: str, *train: str) -> dict[str, Any]:
    return {"name": name, "train": list(train), "lr": 0.1}


def test_stages_answer_for_themselves() -> None:
    """No stage thaws what the design freezes: VLMC141 says so, VLMC140 need not as well."""
    frozen: dict[str, Any] = {
        "encoder": {**ENCODER, **FROZEN},
        "adapter": {"kind": "mlp", **FROZEN},
        "language": {**LANGUAGE, **FROZEN},
        "head": dict(FROZEN),
        "target": target(workload={"mode": "train"}),
    }
    assert codes(design(**frozen)) == ["VLMC140"]
    assert codes(design(**frozen, training={"stages": [stage("a", "adapter")]})) == ["VLMC141"]


def test_each_stage_has_a_name_of_its_own() -> None:
    twice = {"stages": [stage("a", "adapter"), stage("a", "language")]}
    (found,) = diagnose(design(training=twice))
    assert (found.code, found.path, found.help) == (
        "VLMC012",
        ("training", "stages", 1, "name"),
        "name: a-2",
    )
    assert codes(design(training={"stages": [stage("a", "adapter"), stage("b", "head")]})) == []


@pytest.mark.parametrize(
    ("line", "code", "help_"),
    [
        ("encoder: {preset: clip-vit-l-14-336, patch: 14}", "VLMC010", "patch_size: 14"),
        ("encoder: {preset: clip-vit-l-14-336, patch: true}", "VLMC010", "patch_bias: true"),
        (
            "encoder: {preset: clip-vit-l-14-336, feature: {layer: 1}}",
            "VLMC010",
            "did you mean `features`?",
        ),
        ("encoder: {preset: clip-vit-l-14-336, zzz: 1}", "VLMC010",
         "remove it: nothing would read it"),
        ("encoder: opt-2.7b", "VLMC014", "language: opt-2.7b"),
        ("encoder: zzzzzzzz", "VLMC014", None),
        ("encoder: clip-vit-l-14-335", "VLMC014", "encoder: clip-vit-l-14-336"),
        ("encoder: clip-vit-l-14-336\nname: 123", "VLMC011", 'name: "123"'),
        ("encoder: clip-vit-l-14-336\nname: true", "VLMC011", 'name: "true"'),
        ("encoder: {preset: clip-vit-l-14-336, weights: 5}", "VLMC011", 'weights: "5"'),
        (f"{TRAINED}, parallel: {{zero: true}}}}", "VLMC011", "zero: 1"),
        (f"{TRAINED}, parallel: {{zero: 1.0}}}}", "VLMC011", "zero: 1"),
        ("encoder: clip-vit-l-14-336\nhead: classify", "VLMC122", "head: lm"),
    ],
)  # fmt: skip
def test_help_can_be_pasted(line: str, code: str, help_: str | None, tmp_path: Path) -> None:
    (found,) = [d for d in diagnose_file(tmp_path, f"{line}\n{TAIL}") if d.code == code]
    assert found.help == help_


def test_a_preset_of_another_part_is_recognised(tmp_path: Path) -> None:
    (found,) = diagnose_file(tmp_path, f"encoder: opt-2.7b\n{TAIL}")
    assert found.got == "opt-2.7b, the preset of a language model"


@pytest.mark.parametrize(
    ("context", "budget", "help_"),
    [
        (17, {"images": 1, "text": 1}, "adapter: {kind: perceiver_resampler, queries: 16, "
         "layers: 4, width: 32}"),
        (10, {"images": 2, "text": 8}, "adapter: {kind: perceiver_resampler, queries: 1, "
         "layers: 4, width: 32}"),
        (10, {"images": 2, "text": 9}, "token_budget: {images: 0, text: 9}"),
    ],
)  # fmt: skip
def test_what_cannot_hold_an_image_is_told_what_can(
    context: int, budget: dict[str, int], help_: str
) -> None:
    document = design(language={"context": context}, token_budget=budget)
    (found,) = diagnose(document)
    assert (found.code, found.help) == ("VLMC130", help_)
    assert codes(mended(document, found)) == []


@pytest.mark.parametrize(
    ("workload", "help_"),
    [
        ({"prompt": 30, "generate": 10}, "token_budget: {text: 40}"),
        ({"prompt": 30, "generate": 30}, "workload: {prompt: 2, generate: 30}"),
        ({"prompt": 60, "generate": 60}, "workload: {prompt: 1, generate: 31}"),
    ],
)
def test_a_workload_is_not_given_more_than_the_context(
    workload: dict[str, int], help_: str
) -> None:
    document = design(target=target(workload=workload))
    (found,) = diagnose(document)
    assert (found.code, found.help) == ("VLMC131", help_)
    assert codes(mended(document, found)) == []
