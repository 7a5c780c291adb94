"""`vlmc diff`: two designs side by side. Costs are those of a report made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.graph_reports import flamingo_80b
from vlmc.analysis import analyse as analysis
from vlmc.analysis.report import GraphReport
from vlmc.commands import app

SPECS = Path(__file__).parents[2] / "specs"
LLAVA = str(SPECS / "llava-1.5.yaml")


@pytest.fixture(autouse=True)
def _costs_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def analyse(arch: object, **options: Any) -> GraphReport:
        return flamingo_80b(options["mode"])

    monkeypatch.setattr(analysis, "analyse", analyse)
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "cache"))  # no other test is to find them


def variant(folder: Path, text: str) -> str:
    path = folder / "variant.yaml"
    path.write_text(f"extends: {LLAVA}\n{text}\n", encoding="utf-8")
    return str(path)


def diff(*words: str) -> str:
    result = CliRunner().invoke(app, ["diff", *words])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_design_is_like_itself(tmp_path: Path) -> None:
    out = diff(LLAVA, LLAVA, "--set", "target.count=8")
    assert "0 figures differ" in out
    document = json.loads(diff(LLAVA, LLAVA, "--set", "target.count=8", "--json"))
    assert document["differences"] == 0
    sections = {line["section"] for line in document["lines"]}
    assert sections == {"structure", "parameters", "tokens", "FLOPs", "memory", "time"}


def test_what_differs_is_shown_with_its_ratio(tmp_path: Path) -> None:
    other = variant(tmp_path, "adapter: {layers: 1}\ntoken_budget: {text: 1024}")
    words = (LLAVA, other, "--set", "target.count=8")
    document = json.loads(diff(*words, "--json"))
    lines = {(line["section"], line["name"]): line for line in document["lines"]}
    assert lines["structure", "adapter.layers"]["values"] == [2, 1]
    assert lines["tokens", "text"]["values"] == [2048, 1024]
    assert lines["tokens", "text"]["ratio"] == 0.5
    one, two = lines["parameters", "adapter"]["values"]
    assert one - two == 4096 * 4096 + 4096  # the second layer
    assert lines["parameters", "language"]["differs"] is False
    out = diff(*words)
    assert "adapter.layers" in out
    assert "language.heads" not in out
    assert "language.heads" in diff(*words, "--all")


def test_a_design_without_a_target_has_no_plan(tmp_path: Path) -> None:
    bare = tmp_path / "bare.yaml"
    bare.write_text("encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n")
    document = json.loads(diff(str(bare), str(bare), "--json"))
    assert {line["section"] for line in document["lines"]} == {
        "structure", "parameters", "tokens", "FLOPs",
    }  # fmt: skip


def test_a_design_for_which_nothing_fits_is_compared_without_a_plan(tmp_path: Path) -> None:
    """The report by hand has 80B parameters, and the target one device."""
    result = CliRunner().invoke(app, ["diff", LLAVA, LLAVA])
    assert result.exit_code == 0
    assert "no plan fits 1 x a100-80gb" in result.output
    assert "time" not in result.stdout


@pytest.mark.parametrize(
    ("words", "code"), [((LLAVA,), 2), ((LLAVA, "none.yaml"), 2), ((LLAVA, LLAVA, LLAVA), 2)]
)
def test_two_designs_are_named(words: tuple[str, ...], code: int) -> None:
    assert CliRunner().invoke(app, ["diff", *words]).exit_code == code
