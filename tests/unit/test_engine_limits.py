"""What stands in the files of an engine and does not fit: said before anything is computed."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

import vlmc
from tests.conftest import ROOT
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.runtime.engines.aoti_program import check_machine
from vlmc.runtime.engines.graph_files import read_graphs
from vlmc.runtime.engines.mapped_weights import MAPPED, MappedWeights
from vlmc.runtime.engines.onnx_engine import OnnxEngine
from vlmc.runtime.engines.onnx_graph import OnnxGraph
from vlmc.runtime.engines.open import open_engine
from vlmc.runtime.engines.paged import Blocks, BlockTable

LLAVA = ROOT / "specs" / "llava-1.5.yaml"


def mapped(folder: Path, values: dict[str, torch.Tensor]) -> MappedWeights:
    """Constants of graphs, and one weight."""
    folder.mkdir(exist_ok=True)
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    save_file(values, folder / "constants.safetensors")
    return MappedWeights(folder, folder, torch.float32, "cpu")


@pytest.mark.parametrize("name", MAPPED.values(), ids=MAPPED)
def test_constants_of_every_number_format(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    expected = torch.tensor([[0, 1, 3], [1, 0, 2]]).to(dtype)
    own = mapped(tmp_path, {"first": torch.ones(1, dtype=torch.uint8), "c": expected}).constant("c")
    assert own.dtype == dtype
    assert torch.equal(own.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(("F32", "F4"), "holds F4, which"), (("[2,3]", "[2,4]"), r"F32 \[2, 4\] does not take 24")],
)
def test_a_constant_that_is_none(change: tuple[str, str], reason: str, tmp_path: Path) -> None:
    mapped(tmp_path, {"c": torch.ones(2, 3)})
    file = tmp_path / "constants.safetensors"
    old, new = (one.encode() for one in change)
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(old, new)
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    with pytest.raises(EnvironmentFault, match=reason):
        MappedWeights(tmp_path, tmp_path, torch.float32, "cpu").constant("c")


@pytest.mark.parametrize(
    ("made", "here", "runs"),
    [
        ([9, 0], (9, 0), True),
        ([8, 0], (8, 6), True),
        ([8, 6], (8, 0), False),
        ([8, 0], (9, 0), False),
        (None, (9, 0), True),
    ],
)
def test_a_package_for_another_gpu(
    made: Any, here: Any, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: here)
    described = {
        "torch": torch.__version__,
        "dtype": "float32",
        "device": "cuda",
        "gpu": made,
        "system": {"os": platform.system(), "machine": platform.machine()},
        "graphs": [],
    }
    (tmp_path / "graphs.json").write_text(json.dumps(described))
    if runs:
        check_machine(read_graphs(tmp_path))
        return
    with pytest.raises(EnvironmentFault, match=rf"capability {made[0]}.{made[1]}, and this one"):
        check_machine(read_graphs(tmp_path))


def test_a_capability_that_is_none(tmp_path: Path) -> None:
    described = {"torch": "2", "dtype": "float32", "device": "cuda", "gpu": [9], "graphs": []}
    (tmp_path / "graphs.json").write_text(json.dumps(described))
    with pytest.raises(EnvironmentFault, match="is damaged"):
        read_graphs(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("dtype", "fp32", "dtype is 'fp32': float32, bfloat16, float16 is expected"),
        ("device", "tpu", "device is 'tpu': any, cpu, cuda is expected"),
        ("system", 7, "is damaged"),
        ("graphs", [{"name": "decode"}], "is damaged"),
        ("graphs", [], "there is no graph that answers"),
        ("torch", None, "compiled for torch None, and torch"),
    ],
)
def test_a_description_that_was_edited(
    key: str, value: object, reason: str, tmp_path: Path
) -> None:
    described = {"torch": torch.__version__, "dtype": "float32", "device": "cpu", "graphs": []}
    (tmp_path / "aoti").mkdir()
    described["system"] = {"os": platform.system(), "machine": platform.machine()}
    (tmp_path / "aoti" / "graphs.json").write_text(json.dumps({**described, key: value}))
    (tmp_path / "weights").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "weights" / "model.safetensors")
    with pytest.raises(EnvironmentFault, match=reason):
        open_engine(tmp_path, "aoti", vlmc.load(LLAVA, mini=True).design)


def test_a_graph_that_another_tool_has_saved(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [out])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "a.onnx"
    )
    with pytest.raises(EnvironmentFault, match=r"a\.onnx: lacks what vlmc notes in a graph"):
        OnnxGraph(tmp_path / "a.onnx", 1)


def test_an_engine_is_called_as_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "decoder.int8.onnx").touch()
    assert OnnxEngine(tmp_path, serving="decoder").name == "onnx"
    assert OnnxEngine(tmp_path, serving="decoder", variant="int8").name == "onnx-int8"


def test_a_row_beyond_its_table_takes_no_block() -> None:
    blocks = Blocks(10, 16)
    table = BlockTable(blocks, 2, 3)
    table.reach([0, 40])
    free, numbers = list(blocks.free), table.numbers.copy()
    with pytest.raises(UsageError, match="holds 48 tokens of a sequence, and 49 are needed"):
        table.reach([20, 48])
    assert blocks.free == free
    assert np.array_equal(table.numbers, numbers)
    assert table.reach([20, 47])
