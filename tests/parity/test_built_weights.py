"""A build with a checkpoint: weights/ holds the reference's values under our names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from oracle import logits_of
from safetensors.torch import load_file, save_file
from test_llava import DOCUMENT, Pair, one_image
from torch import nn

import vlmc
from vlmc.builder.weights import LAYOUT
from vlmc.diagnostics import UsageError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("llava"), DOCUMENT)


def spec_file(folder: Path, **weights: Path) -> Path:
    document = {"name": "small", "artifacts": ["model"], **DOCUMENT}
    for part, place in weights.items():
        document[part] = {**document[part], "weights": str(place)}
    path = folder / "small.yaml"
    path.write_text(json.dumps(document))
    return path


def same(one: nn.Module, other: nn.Module, *, below: str = "") -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(
        torch.equal(a, b) and name == again
        for (name, a), (again, b) in pairs
        if name.startswith(below)
    )


def test_weights_come_from_the_checkpoint_and_stay(pair: Pair, tmp_path: Path) -> None:
    path, out = spec_file(tmp_path), tmp_path / "out"
    manifest = vlmc.build(path, out, checkpoint=pair.folder)
    status = manifest.artifacts["weights"]
    assert status.status == "built"
    assert status.source is not None
    assert status.source.startswith("checkpoint ")
    assert str(tmp_path) not in manifest.text()
    assert manifest.verify(out) == []
    stored = vlmc.build_model(vlmc.load_spec(out), checkpoint=out)
    assert same(stored, pair.ours)
    inputs = one_image()
    assert torch.equal(logits_of(stored, inputs), logits_of(pair.ours, inputs))
    file = out / "weights" / "model.safetensors"
    inode = file.stat().st_ino
    assert vlmc.build(path, out, checkpoint=pair.folder).unchanged
    assert vlmc.build(path, out).unchanged, "weights that fit stay where none are given"
    assert vlmc.check(path, out) == []
    path.write_text(path.read_text().replace('"small"', '"renamed"'))
    assert not vlmc.build(path, out).unchanged
    assert file.stat().st_ino == inode
    path.write_text(path.read_text().replace('"hidden": 96', '"hidden": 80'))
    assert vlmc.build(path, out).artifacts["weights"].status == "deferred"
    assert not file.parent.exists(), "weights of another design go"


def test_a_fine_tuned_checkpoint_is_another_source(pair: Pair, tmp_path: Path) -> None:
    path, out, tuned = spec_file(tmp_path), tmp_path / "out", tmp_path / "tuned"
    vlmc.build(path, out, checkpoint=pair.folder)
    shutil.copytree(pair.folder, tuned)
    tensors = load_file(tuned / "model.safetensors")
    name = next(name for name in tensors if name.endswith("linear_1.weight"))
    tensors[name][0, 0] += 1
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    assert not vlmc.build(path, out, checkpoint=tuned).unchanged
    stored = vlmc.build_model(vlmc.load_spec(out), checkpoint=out)
    assert not same(stored, pair.ours, below="adapter")
    assert same(stored, pair.ours, below="language")


def test_a_part_has_a_checkpoint_of_its_own(pair: Pair, tmp_path: Path) -> None:
    path = spec_file(tmp_path, encoder=pair.folder, language=pair.folder)
    manifest = vlmc.build(path, tmp_path / "out")
    source = manifest.artifacts["weights"].source
    assert source is not None
    assert source.startswith("encoder ")
    assert ", seed 0; layout " in source
    stored = vlmc.build_model(vlmc.load_spec(tmp_path / "out"), checkpoint=tmp_path / "out")
    direct = vlmc.build_model(vlmc.load_spec(path))
    assert same(stored, direct)
    for part in ("encoder", "language"):
        assert same(stored, pair.ours, below=part)
    assert not same(stored, pair.ours, below="adapter")
    assert (
        vlmc.build(path, tmp_path / "mini", mini=True).artifacts["weights"].source
        == f"seed 0; layout {LAYOUT}"
    )


def test_an_absent_checkpoint_of_a_part_defers_the_weights(tmp_path: Path) -> None:
    manifest = vlmc.build(spec_file(tmp_path, encoder=Path("clip")), tmp_path / "out")
    assert manifest.artifacts["weights"].reason == "there is no checkpoint folder clip here"


def test_a_foreign_folder_is_told_before_the_memory(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmc.emit.backends.weights.free_memory", lambda: 0)
    path, other = spec_file(tmp_path), tmp_path / "other"
    other.mkdir()
    (other / "a.txt").touch()
    with pytest.raises(UsageError, match=r"there is no model\.safetensors"):
        vlmc.build(path, tmp_path / "out", checkpoint=other)
    status = vlmc.build(path, tmp_path / "out", checkpoint=pair.folder).artifacts["weights"]
    assert status.status == "deferred"
    wide = spec_file(other)
    wide.write_text(wide.read_text().replace('"hidden": 96', '"hidden": 80'))
    with pytest.raises(UsageError, match="is not a checkpoint of small"):
        vlmc.build(wide, tmp_path / "wide", checkpoint=pair.folder)


def test_a_checkpoint_of_another_design_builds_nothing(pair: Pair, tmp_path: Path) -> None:
    path = spec_file(tmp_path)
    path.write_text(path.read_text().replace('"hidden": 96', '"hidden": 80'))
    with pytest.raises(UsageError, match="is not a checkpoint of small"):
        vlmc.build(path, tmp_path / "out", checkpoint=pair.folder)
    with pytest.raises(UsageError, match="there is no such folder"):
        vlmc.build(path, tmp_path / "out", checkpoint=tmp_path / "nowhere")
    assert [place.name for place in tmp_path.iterdir()] == ["small.yaml"]
