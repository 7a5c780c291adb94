"""By what the store knows graphs: by the weights' values where they hold any that follow from
them, whatever the size of the file that they lie in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlmc.capture.graph import Folded, Stored
from vlmc.emit.backends.graphs import effects, graphs
from vlmc.emit.recipe import OF_DESIGN
from vlmc.emit.record import hashed
from vlmc.emit.torch_graphs.programs import describe
from vlmc.passes.effect import Effect
from vlmc.pipeline import plan

LLAVA = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
NAME = "model.safetensors"


def made(build: Path, weight: float, *, computes: bool) -> bool:
    """Whether a build with one weight makes its graphs anew. Their own file is as large as that of
    the weights: another value, or a copy. They hold a constant of the design, too."""
    times: list[Path] = []

    def fill(weights: Path, folder: Path) -> None:
        times.append(folder)
        value = load_file(weights / NAME)["gate"]
        save_file({"gate": value.tanh() if computes else value}, folder / "own.safetensors")
        save_file({"rotary": torch.ones(3)}, folder / "constants.safetensors", OF_DESIGN)

    found = graphs(
        plan(LLAVA, build, (), True), "compile", fill, sources=(), packages=(), options={}
    )
    (build / "weights").mkdir(parents=True)
    (build / "compile").mkdir()
    save_file({"gate": torch.tensor([weight])}, build / "weights" / NAME)
    needed = {f"weights/{NAME}": hashed(build / "weights" / NAME)}
    found.make(build / "compile", needed)
    found.keep(build / "compile", needed)
    own = load_file(build / "compile" / "own.safetensors")["gate"]
    expected = torch.tensor([weight])
    assert torch.equal(own, expected.tanh() if computes else expected)
    return bool(times)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "cache"))


def test_constants_as_large_as_the_weights_are_never_stale(tmp_path: Path) -> None:
    assert made(tmp_path / "a", 0.3, computes=True)
    assert made(tmp_path / "b", 0.7, computes=True)
    assert not made(tmp_path / "c", 0.3, computes=True)


def test_a_copy_of_the_weights_is_no_constant(tmp_path: Path) -> None:
    assert made(tmp_path / "a", 0.3, computes=False)
    assert not made(tmp_path / "b", 0.7, computes=False)


@pytest.mark.parametrize("parts", [(), ("gate",)])
def test_constants_say_whether_they_follow_from_weights(
    parts: tuple[str, ...], tmp_path: Path
) -> None:
    save_file({"gate": torch.ones(1)}, tmp_path / NAME)
    folded = Folded(parts=parts, compute=lambda *values: torch.ones(1))
    graph: Any = SimpleNamespace(
        name="decode",
        constants={"a": Stored(parts=("gate",)), "b": folded},
        program=SimpleNamespace(state_dict={"b": torch.empty(1)}),
        inputs=(),
        outputs=(),
        bounds={},
    )
    arch = plan(LLAVA, tmp_path, (), True).arch
    describe(arch, [graph], torch.float32, tmp_path, tmp_path, extra={})
    with safe_open(tmp_path / "constants.safetensors", "pt") as file:
        assert (file.metadata() == OF_DESIGN) == (not parts)
        (entry,) = json.loads((tmp_path / "graphs.json").read_text())["graphs"]
        assert [*file.keys()] == [entry["constants"]["b"]]


def test_what_passes_did_is_told_of_graphs_from_the_cache_too(tmp_path: Path) -> None:
    def told(folder: Path) -> list[str]:
        lines: list[str] = []
        heard: list[str] = []
        build = plan(LLAVA, folder, (), True, tell=lines.append)

        def fill(weights: Path, place: Path) -> None:
            effects(build, "compile", heard)(Effect("fold_constants", "decode", "3 nodes"))
            (place / "graph").touch()

        found = graphs(build, "compile", fill, sources=(), packages=(), options={}, heard=heard)
        (folder / "compile").mkdir(parents=True)
        found.make(folder / "compile", {})
        found.keep(folder / "compile", {})
        return lines

    first = told(tmp_path / "a")
    assert first == ["compile/decode: fold constants: 3 nodes"]
    assert told(tmp_path / "b") == first
