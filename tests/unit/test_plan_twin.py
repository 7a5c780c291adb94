"""`vlmc plan` from a spec to plan.yaml with the costs of real graphs, on a twin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vlmc.builder.model import instantiate
from vlmc.commands import app
from vlmc.pipeline import load_spec, resolve
from vlmc.planning.document import load_plan

SPEC = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
TARGET = [
    "--set", "target={hardware: t4, count: 2, precision: fp32, parallel: {pipeline: 2}}",
    "--set", "target.workload={mode: train, batch: 8}",
]  # fmt: skip


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    words = ["plan", str(SPEC), "--mini", *TARGET, "--json", "--output", str(file)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return {**found, "file": file}


def test_weights_of_all_devices_are_those_of_the_design(document: dict[str, Any]) -> None:
    """In fp32 every parameter is 4 bytes, its gradient 4 and its two moments 8 where it is trained,
    each tensor in blocks of 512 bytes of CUDA's allocator; a pipeline of two holds each once."""
    arch = resolve(load_spec(SPEC), mini=True)
    sizes = {True: 0, False: 0}
    for parameter in instantiate(arch).parameters():
        sizes[parameter.requires_grad] += -(-4 * parameter.numel() // 512) * 512
    memory = document["plan"]["predicted"]["memory"]
    assert len(memory) == 2
    assert sum(one["weights"] for one in memory) == sum(sizes.values())
    assert sum(one["gradients"] for one in memory) == sizes[True]
    assert sum(one["optimiser"] for one in memory) == 2 * sizes[True]


def test_a_build_of_the_twin_holds_a_plan_that_the_design_is_too_large_for(tmp_path: Path) -> None:
    """LLaVA-1.5 takes 109 GB to train; its twin fits one such device."""
    words = ["--set", "target={hardware: a100-80gb, workload: {mode: train}}"]
    result = CliRunner().invoke(app, ["validate", str(SPEC), *words])
    assert "VLMC152" in result.output
    made = ["build", str(SPEC), "--mini", "--artifacts", "plan", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*made, *words])
    assert result.exit_code == 0, result.output
    assert load_plan(tmp_path / "out" / "plan.yaml").plan.count == 1
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "out")]).exit_code == 0
    assert CliRunner().invoke(app, ["build", str(tmp_path / "out")]).exit_code == 0
    wrong = [*words, "--set", "target.parallel={tensor: 3}"]
    assert "VLMC103" in CliRunner().invoke(app, [*made, *wrong]).output


def test_every_block_of_the_graphs_is_held(document: dict[str, Any]) -> None:
    held = [block for stage in document["plan"]["stages"] for block in stage["holds"]]
    names = {block["block"] for block in held}
    assert {"encoder.layers.*", "adapter", "language.layers.*", "head"} <= names
    twin = resolve(load_spec(SPEC), mini=True).node("language").arguments["layers"]
    layers = [b for b in held if b["block"] == "language.layers.*"]
    assert sum(b["last"] - b["first"] + 1 for b in layers) == twin


def test_the_plan_passes_its_own_check(document: dict[str, Any]) -> None:
    words = ["plan", str(SPEC), "--mini", *TARGET, "--check", str(document["file"])]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert document["file"].with_suffix(".svg").read_text(encoding="utf-8").startswith("<svg")
