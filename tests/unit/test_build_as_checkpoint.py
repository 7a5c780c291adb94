"""A build in the place of a checkpoint: what its values are, and what says nothing of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlmc
from vlmc.emit.fresh import current
from vlmc.emit.manifest import MEASURED
from vlmc.emit.store import store
from vlmc.pipeline import plan

LLAVA = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "cache"))
    vlmc.build(LLAVA, tmp_path / "first", mini=True, artifacts=["model"])
    return tmp_path / "first"


def test_its_weights_are_what_is_read_of_it(first: Path, tmp_path: Path) -> None:
    second, file = tmp_path / "second", first / "weights" / "model.safetensors"
    before = vlmc.build(first, second, checkpoint=first)
    source = before.artifacts["weights"].source
    (first / MEASURED).write_text("measured again")
    (first / "notes.json").write_text("{}")
    assert current(plan(first, second, (), False, checkpoint=first), store()) is not None
    assert vlmc.build(first, second, checkpoint=first).unchanged

    values = load_file(file)
    name = next(name for name in values if name.startswith("adapter."))
    values[name] = values[name] + 1
    save_file(values, file)
    after = vlmc.build(first, second, checkpoint=first)
    assert after.artifacts["weights"].source != source
    stored = load_file(second / "weights" / "model.safetensors")
    assert torch.equal(stored[name], values[name])

    (first / "weights" / "generation_config.json").write_text('{"eos_token_id": 2}')
    vlmc.build(first, second, checkpoint=first)
    carried = (second / "weights" / "generation_config.json").read_text()
    assert carried == '{"eos_token_id": 2}'
