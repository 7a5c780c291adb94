"""A build in the place of a checkpoint: what its values are, and what says nothing of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlmc
from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.backends import weights
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


def test_another_file_of_the_same_size_and_time_is_another_checkpoint(
    first: Path, tmp_path: Path
) -> None:
    second, file = tmp_path / "second", first / "weights" / "model.safetensors"
    values = load_file(file)
    save_file(values, file)  # laid out as the other one will be
    vlmc.build(first, second, checkpoint=first)
    before = file.stat()
    values = {name: value + 1 for name, value in values.items()}
    save_file(values, tmp_path / "other.safetensors")
    os.utime(tmp_path / "other.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "other.safetensors").replace(file)
    assert file.stat().st_size == before.st_size
    assert not vlmc.build(first, second, checkpoint=first).unchanged
    stored = load_file(second / "weights" / "model.safetensors")
    assert all(torch.equal(stored[name], values[name]) for name in stored)


@pytest.mark.parametrize("others", [False, True], ids=["same-seed", "other-layout"])
def test_weights_trained_in_place_are_not_drawn_again(
    first: Path, others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = first / "weights" / "model.safetensors"
    drawn, values = load_file(file), load_file(file)
    name = next(name for name in values if name.startswith("adapter."))
    values[name] = values[name] + 1
    save_file(values, file)
    trained = file.read_bytes()
    if others:
        monkeypatch.setattr(weights, "LAYOUT", "another")
    with pytest.raises(EnvironmentFault, match=r"has changed since it was built, and .* --seed 0"):
        vlmc.build(first)
    assert file.read_bytes() == trained

    vlmc.build(first, checkpoint=first)
    assert torch.equal(load_file(file)[name], values[name])
    vlmc.build(first, seed=0)
    assert torch.equal(load_file(file)[name], drawn[name])


def test_missing_weights_are_drawn_again(first: Path) -> None:
    file = first / "weights" / "model.safetensors"
    before = file.read_bytes()
    file.unlink()
    vlmc.build(first)
    assert file.read_bytes() == before
