"""What a build holds beside its weights: at most 2% of their bytes.

Counted is everything but the weights themselves: the texts (run.py and model.py among them), ONNX
graphs, and the constants that were folded. The designs are as wide as the published ones and have
fewer layers: graphs and texts hardly depend on widths, so that this is the hardest case at this
size. The weights are never there: a file of their length without a single block on the disk, in
which every value reads as 0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from vlmc import pipeline
from vlmc.builder.located import located_in
from vlmc.builder.model import instantiate
from vlmc.builder.weights import siblings
from vlmc.emit import catalog
from vlmc.emit.onnx import write
from vlmc.emit.options import Options
from vlmc.ir import Arch

SPECS = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
SHARE = 0.02
FLAMINGO = (
    "encoder.depths=[1, 1, 1, 1]",
    "adapter.layers=1",
    "fusion.every=2",
    "language.layers=2",
)
CUT = {
    "flamingo": FLAMINGO,
    "flamingo-9b": FLAMINGO,
    "flamingo-3b": FLAMINGO,
    "idefics-9b": ("encoder.layers=2", "adapter.layers=1", "fusion.every=2", "language.layers=2"),
    "blip2": ("encoder.layers=2", "adapter.layers=2", "language.layers=2"),
    "blip2-flan-t5": (
        "encoder.layers=2",
        "adapter.layers=2",
        "language.layers=2",
        "language.decoder_layers=2",
    ),
    "llava-1.5": ("encoder.layers=3", "language.layers=2"),
    "visualbert": (),
}


@dataclass
class Beside:
    """Bytes of a build, as far as they are no weights."""

    weights: int
    files: dict[str, int]


def beside(path: Path, folder: Path, overrides: tuple[str, ...], *, mini: bool) -> Beside:
    this = pipeline.plan(path, None, overrides, mini)
    weights = sparse(this.arch, folder / "weights")
    write(this.arch, folder / "weights", folder / "onnx", options=Options())
    files = {text.path: len(text.data) for text in catalog.texts(this)}
    for file in (folder / "onnx").iterdir():
        if file.is_file():
            files[f"onnx/{file.name}"] = file.stat().st_size
    return Beside(weights, files)


def sparse(arch: Arch, folder: Path) -> int:
    """A file of weights that takes no room: its header, and as many bytes as there would be."""
    header: dict[str, object] = {}
    end = 0
    for group in siblings(instantiate(arch)):
        for name, one in group:
            begin, end = end, end + 4 * one.numel()
            header[name] = {"dtype": "F32", "shape": [*one.shape], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_what_lies_beside_the_weights(path: Path, tmp_path: Path) -> None:
    found = beside(path, tmp_path, CUT[path.stem], mini=False)
    assert found.weights > 4e8, "of about 100 million parameters and more"
    assert {"run.py", "model.py", "onnx/vision.onnx"} <= set(found.files)
    assert sum(found.files.values()) <= SHARE * found.weights, found


@pytest.mark.parametrize("name", ["flamingo", "blip2"])
def test_constants_of_a_twin(name: str, tmp_path: Path) -> None:
    """Even of so little weight: its kernels are not there a second time."""
    path = next(path for path in SPECS if path.stem == name)
    found = beside(path, tmp_path, (), mini=True)
    assert found.files.get("onnx/constants.safetensors", 0) <= 0.005 * found.weights
    if name == "flamingo":
        sizes = [one.shape for one in located_in(tmp_path / "onnx/constants.safetensors").values()]
        assert (96, 1, 1, 1) in sizes, "the scale of each output of a convolution"
