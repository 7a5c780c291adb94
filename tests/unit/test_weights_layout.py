"""Weights on disk: what is read as one matrix is one stretch of one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlmc.builder.located import Located, adjacent, located
from vlmc.builder.values import valued
from vlmc.builder.weights import save_weights
from vlmc.diagnostics import EnvironmentFault
from vlmc.pipeline import load_spec, resolve


@pytest.fixture(scope="module")
def model(root: Path) -> torch.nn.Module:
    return valued(resolve(load_spec(root / "specs" / "llava-1.5.yaml"), mini=True))


@pytest.mark.parametrize("limit", [5_000_000_000, 20_000])
def test_projections_of_one_block_are_one_stretch(
    model: torch.nn.Module, tmp_path: Path, limit: int
) -> None:
    save_weights(model, tmp_path, max_shard_bytes=limit)
    places = located(tmp_path)
    assert places.keys() == dict(model.named_parameters()).keys()
    assert (len({one.file for one in places.values()}) > 1) == (limit < 1e6)
    joined = 0
    for name in places:
        block, dot, rest = name.rpartition(".query.")
        if dot:
            parts = [f"{block}.{part}.{rest}" for part in ("query", "key", "value")]
        elif ".gate." in name:
            parts = [name, name.replace(".gate.", ".up.")]
        else:
            continue
        joined += 1
        stretch = [places[part] for part in parts]
        assert adjacent(stretch), parts
        assert not adjacent(stretch[::-1])
        data = stretch[0].file.read_bytes()[stretch[0].begin : stretch[-1].end]
        values = torch.frombuffer(bytearray(data), dtype=torch.float32)
        expected = torch.cat([model.get_parameter(part).flatten() for part in parts])
        assert torch.equal(values, expected), parts
    assert joined > 10


def test_places_are_those_that_the_library_reads(model: torch.nn.Module, tmp_path: Path) -> None:
    model = model.to(torch.float32)
    model.get_submodule("head").to(torch.bfloat16)
    (file,) = save_weights(model, tmp_path)
    model.to(torch.float32)
    data = file.read_bytes()
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16}
    library = load_file(file)
    for name, one in located(tmp_path).items():
        values = torch.frombuffer(bytearray(data[one.begin : one.end]), dtype=kinds[one.dtype])
        assert torch.equal(values.view(one.shape), library[name]), name
        assert one.begin % library[name].element_size() == 0
        if one.end - one.begin > 4096:
            assert one.begin % 64 == 0, f"{name} straddles cache lines"


def test_what_lies_apart_is_not_adjacent() -> None:
    one = Located(Path("a"), "F32", (2, 4), 0, 32)
    assert adjacent([one])
    assert adjacent([one, Located(Path("a"), "F32", (3, 4), 32, 80)])
    assert not adjacent([one, Located(Path("b"), "F32", (3, 4), 32, 80)])
    assert not adjacent([one, Located(Path("a"), "BF16", (6, 4), 32, 80)])
    assert not adjacent([one, Located(Path("a"), "F32", (3, 4), 36, 84)])
    assert not adjacent([one, Located(Path("a"), "F32", (4, 3), 32, 80)])


@pytest.mark.parametrize("damage", ["missing", "short", "text", "index"])
def test_a_damaged_file_is_named(model: torch.nn.Module, tmp_path: Path, damage: str) -> None:
    (file,) = save_weights(model, tmp_path)
    if damage == "missing":
        file.unlink()
    elif damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "text":
        file.write_text("not this format")
    else:
        (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(EnvironmentFault, match=r"model\.safetensors"):
        located(tmp_path)
