"""Where the constants of ONNX graphs lie, what quantisation costs, and what an engine refuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from tests.parity.onnx_twins import relative, twin
from vlmc.builder.located import Located, located
from vlmc.builder.model import instantiate
from vlmc.builder.seed import initialise
from vlmc.builder.stream import Streamed, write_safetensors
from vlmc.builder.weights import save_weights
from vlmc.capture.capture import capture
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.emit.onnx import write
from vlmc.emit.onnx.builder import Builder
from vlmc.emit.onnx.external import Tables, of_weights
from vlmc.emit.onnx.measure import measure
from vlmc.emit.onnx.quantise import pack
from vlmc.emit.onnx.threshold import LARGEST_ERROR
from vlmc.emit.onnx.writer import Writer, silent
from vlmc.emit.options import Options
from vlmc.passes.pipeline import optimise
from vlmc.pipeline import load_spec, resolve
from vlmc.runtime.engines.engine import Row
from vlmc.runtime.engines.onnx_engine import OnnxEngine

NAME = "llava-1.5"


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`write` finds the twin's graphs captured."""
    monkeypatch.setattr("vlmc.emit.onnx.writer.capture", lambda arch, cache: [*twin(NAME).captured])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(twin(NAME).model, tmp_path / "weights")
    return tmp_path / "weights"


def _disk(folder: Path) -> int:
    """Bytes of a folder, those of one inode counted once."""
    seen: dict[int, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            seen[path.stat().st_ino] = path.stat().st_size
    return sum(seen.values())


def test_weights_exist_once(tmp_path: Path) -> None:
    spec = {
        "schema": 1,
        "name": "wide",
        "about": "LLaVA of 20 million parameters",
        "encoder": {
            "kind": "vit",
            "image_size": 64,
            "patch_size": 16,
            "width": 256,
            "layers": 3,
            "heads": 4,
            "hidden": 1024,
        },
        "adapter": {"kind": "mlp", "layers": 2, "activation": "gelu"},
        "fusion": {"point": "late", "kind": "placeholder", "token": 3},
        "language": {
            "preset": "vicuna-7b-v1.5",
            "width": 512,
            "layers": 3,
            "heads": 8,
            "kv_heads": 8,
            "hidden": 1408,
            "vocabulary": 8000,
        },
        "token_budget": {"images": 1, "text": 64},
    }
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump(spec))
    arch = resolve(load_spec(path))
    model = instantiate(arch, device="cpu")
    initialise(model, seed=0)
    build = tmp_path / "build"
    save_weights(model, build / "weights")
    graphs = [optimise(graph, "onnx") for graph in capture(arch, cache="growing")]
    options = Options()
    os.makedirs(build / "onnx" / "weights")
    os.link(
        build / "weights" / "model.safetensors", build / "onnx" / "weights" / "model.safetensors"
    )
    Writer(arch, build / "weights", build / "onnx", options, silent).write(graphs)
    total = sum(parameter.nbytes for parameter in model.parameters())
    assert total > 60e6
    assert _disk(build) <= 1.02 * total


@pytest.mark.usefixtures("captured_once")
def test_the_same_bytes_wherever_it_is_written(weights: Path, tmp_path: Path) -> None:
    arch = twin(NAME).arch
    for name in ("one", "another/deeper"):
        write(arch, weights, tmp_path / name, options=Options())
    files = sorted(path.name for path in (tmp_path / "one").glob("*.*"))
    assert files == ["constants.safetensors", "decoder.onnx", "embed.onnx", "vision.onnx"]
    for name in files:
        one, another = tmp_path / "one" / name, tmp_path / "another/deeper" / name
        assert one.read_bytes() == another.read_bytes()
        assert str(tmp_path).encode() not in one.read_bytes()
        assert b".py" not in one.read_bytes()
    linked = tmp_path / "one" / "weights" / "model.safetensors"
    assert linked.stat().st_ino == (weights / "model.safetensors").stat().st_ino


@pytest.mark.usefixtures("captured_once")
def test_a_copy_where_there_are_no_links(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no links on this file system")

    monkeypatch.setattr(os, "link", refuse)
    write(twin(NAME).arch, weights, tmp_path / "onnx", options=Options())
    copied = tmp_path / "onnx" / "weights" / "model.safetensors"
    assert copied.read_bytes() == (weights / "model.safetensors").read_bytes()
    assert copied.stat().st_ino != (weights / "model.safetensors").stat().st_ino


def test_parts_that_do_not_lie_side_by_side(weights: Path, tmp_path: Path) -> None:
    made = twin(NAME)
    scattered = tmp_path / "scattered"
    scattered.mkdir()
    # The library's own order is that of the names: key, output, query, value.
    tensors = {name: tensor.clone() for name, tensor in made.model.named_parameters()}
    save_file(tensors, scattered / "model.safetensors")
    rows = made.rows([0])([])
    results: list[Any] = []
    for place in (weights, scattered):
        folder = made.write(place, tmp_path / f"onnx-{place.name}")
        results.append(made.engine(folder).prefill(rows)[1])
        model = onnx.load(str(folder / "decoder.onnx"), load_external_data=False)
        stored = {one.name for one in model.graph.initializer}
        joins = [n for n in model.graph.node if n.op_type == "Concat" and {*n.input} <= stored]
        assert bool(joins) == (place is scattered)
    assert relative(*results) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision(dtype: torch.dtype, weights: Path, tmp_path: Path) -> None:
    made = twin(NAME)
    half = instantiate(made.arch, device="cpu").eval().requires_grad_(False)
    half.load_state_dict(made.model.state_dict())
    half.to(dtype)
    save_weights(half, tmp_path / "half")
    # In fp32, of the rounded weights.
    rounded = replace(made, model=half.float())
    engine = made.engine(made.write(tmp_path / "half", tmp_path / "onnx"))
    eager, pixels = rounded.eager, made.pixels()
    rows = made.rows([1, 0])
    _, wanted = eager.prefill(rows(eager.encode_images(pixels)))
    _, got = engine.prefill(rows(engine.encode_images(pixels)))
    assert relative(wanted, got) <= 1e-4
    exact = made.engine(made.write(weights, tmp_path / "exact"))
    assert relative(exact.prefill(rows(exact.encode_images(pixels)))[1], got) > 1e-4


def test_constants_beyond_two_gigabytes(tmp_path: Path) -> None:
    place = tmp_path / "weights" / "model.safetensors"
    place.parent.mkdir()
    far, size = 2**31 + 2**20, 64
    header = {
        "padding": {"dtype": "F32", "shape": [far // 4], "data_offsets": [0, far]},
        "far": {"dtype": "F32", "shape": [4, 4], "data_offsets": [far, far + size]},
    }
    text = json.dumps(header).encode()
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    with place.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(far, os.SEEK_CUR)  # a hole: it takes no room on disk
        file.write(values.tobytes())
    (constant,) = of_weights("far", [located(place.parent)["far"]], "weights")
    assert constant.span is not None
    assert constant.span[0] > 2**31
    builder = Builder("far", 23, Tables("constants.safetensors"))
    name = builder.call("Gemm", ["x", builder.initializer(constant)], transB=1)
    info = [helper.make_tensor_value_info(one, TensorProto.FLOAT, ["n", 4]) for one in ("x", "y")]
    model = builder.finish(info[:1], info[1:], [name], {}, {})
    (tmp_path / "far.onnx").write_bytes(model.SerializeToString())
    x = np.ones((1, 4), np.float32)
    (found,) = onnxruntime.InferenceSession(tmp_path / "far.onnx").run(None, {"x": x})
    assert found.tolist() == [values.sum(axis=1).tolist()]


def test_neighbours_are_one_constant(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        write_safetensors(
            stream,
            [
                Streamed(name, torch.float32, (rows, 2), lambda rows=rows: torch.ones(rows, 2))
                for name, rows in (("a", 1), ("b", 2), ("c", 3))
            ],
        )
    places: dict[str, Located] = located(tmp_path)
    (joined,) = of_weights("ab", [places["a"], places["b"]], "weights")
    assert joined.shape == (3, 2)
    assert joined.span == (places["a"].begin, places["b"].end)
    assert [one.shape for one in of_weights("ac", [places["a"], places["c"]], "weights")] == [
        (1, 2),
        (3, 2),
    ]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [32, 40])
def test_packed_weights_are_within_half_a_step(bits: int, inputs: int) -> None:
    weight = torch.randn(6, inputs)
    weight[0] = 0
    codes, scales = pack(weight, bits)
    assert codes.shape == (6, -(-inputs // 32), 4 * bits)
    if bits == 4:
        codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    found = (codes.float() - 2 ** (bits - 1)) * scales[..., None]
    found = found.flatten(1)
    assert (found[:, inputs:] == 0).all()
    blocks = scales.abs().repeat_interleave(32, dim=1)[:, :inputs]
    # Half a step, but a whole one for what the largest code of the other sign cuts off.
    assert ((found[:, :inputs] - weight).abs() <= blocks * 1.001).all()
    assert ((found[:, :inputs] - weight).abs() <= blocks * 0.501).float().mean() > 0.9


@pytest.mark.usefixtures("captured_once")
@pytest.mark.parametrize(("bits", "least", "most"), [("int8", 1e-4, 0.1), ("int4", 0.02, 0.5)])
def test_quantised_graphs_and_their_error(
    bits: Any, least: float, most: float, weights: Path, tmp_path: Path
) -> None:
    made, folder = twin(NAME), tmp_path / "onnx"
    write(made.arch, weights, folder, options=Options(quantize=bits))
    error = json.loads((folder / "quantisation.json").read_text())[bits]
    assert least < error["mean"] < most
    assert error["mean"] <= error["largest"]
    assert error["allowed"] == LARGEST_ERROR[bits]
    assert 0 <= error["agreement"] <= 1
    assert not (folder / f"vision.{bits}.onnx").exists()
    packed = folder / f"decoder.{bits}.safetensors"
    language = sum(p.numel() for p in made.model.language.layers.parameters() if p.ndim == 2)
    head = made.model.head.projection.weight.numel()
    each = int(bits[3:]) / 8 + 4 / 32
    bounds = made.captured[-1].bounds
    angles = 2 * bounds["total"][1] * made.arch.node("language").arguments["head_dim"] / 2
    assert packed.stat().st_size == pytest.approx((language + head) * each + 4 * angles, rel=0.1)
    engine = made.engine(folder, variant=bits)
    features = engine.encode_images(made.pixels())
    state, logits = engine.prefill(made.rows([1, 0])(features))
    assert np.isfinite(engine.step(state, logits.argmax(axis=-1))).all()


@pytest.mark.usefixtures("captured_once")
def test_quantisation_that_costs_too_much_is_refused(weights: Path, tmp_path: Path) -> None:
    options = Options(quantize="int4", quantize_vision=True, max_error=0.01)
    with pytest.raises(UsageError, match=r"int4 moves the logits by 0\.\d+ .* 0\.01 that is allow"):
        write(twin(NAME).arch, weights, tmp_path / "onnx", options=options)
    assert (tmp_path / "onnx" / "vision.int4.onnx").exists()
    with pytest.raises(UsageError, match=r"--max-error 0\.") as found:
        write(twin(NAME).arch, weights, tmp_path / "onnx", options=options)
    allowed = float(str(found.value).split("--max-error ")[1].split()[0])
    measured = measure(twin(NAME).arch, tmp_path / "onnx", "int4")
    assert measured.mean <= allowed < 1.2 * measured.mean


@pytest.mark.usefixtures("captured_once")
def test_quantised_weights_that_are_not_finite_are_named(weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(weights, broken)
    values = load_file(broken / "model.safetensors")
    name = "language.norm.weight"
    values[name] = values[name] * float("nan")
    save_file(values, broken / "model.safetensors")
    with pytest.raises(EnvironmentFault, match=f"NaN or infinity: .*{name}.*int8 cannot be"):
        write(twin(NAME).arch, broken, tmp_path / "onnx", options=Options(quantize="int8"))


def test_an_encoder_decoder_and_a_single_pass_are_quantised(tmp_path: Path) -> None:
    for name, graphs in (("blip2-flan-t5", ["decoder", "encoder"]), ("visualbert", ["model"])):
        made, folder = twin(name), tmp_path / name
        save_weights(made.model, tmp_path / f"{name}-weights")
        made.write(tmp_path / f"{name}-weights", folder)
        options = Options(quantize="int8")
        Writer(made.arch, tmp_path / f"{name}-weights", folder, options, silent).write_quantised(
            made.graphs
        )
        assert sorted(p.name for p in folder.glob("*.int8.onnx")) == [
            f"{graph}.int8.onnx" for graph in graphs
        ]
        # T5 does not scale its scores, so that drawn weights answer to the smallest change.
        assert 1e-5 < measure(made.arch, folder, "int8").mean < 0.3


def test_what_the_engine_refuses(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = twin(NAME)
    folder = made.write(weights, tmp_path / "onnx")
    engine = made.engine(folder)
    capacity = engine.capacity
    assert capacity == made.design.sequence + 1
    long = Row(ids=np.zeros(capacity, np.int64), visual=np.zeros(capacity, np.bool_))
    with pytest.raises(UsageError, match=f"a prompt has {capacity} tokens"):
        engine.prefill([long])
    with pytest.raises(UsageError, match="65 prompts at once: the graphs of --engine onnx take 64"):
        engine.prefill(made.rows([0])([]) * 65)
    fitting = Row(ids=long.ids[1:], visual=long.visual[1:])
    state, _ = engine.prefill([fitting])
    engine.step(state, np.array([1]))
    with pytest.raises(UsageError, match=f"{capacity + 1} tokens, but the graphs are made for"):
        engine.step(state, np.array([1]))
    engine.prefill(made.rows([0])([]))  # usable as before
    with pytest.raises(EnvironmentFault, match="holds no int8 graphs"):
        made.engine(folder, variant="int8")
    with pytest.raises(EnvironmentFault, match="there is no such graph"):
        OnnxEngine(tmp_path / "nowhere", serving="sequence").encode_images(made.pixels())
    (folder / "embed.onnx").write_bytes(b"damaged")
    with pytest.raises(EnvironmentFault, match="cannot open it"):
        made.engine(folder).prefill(made.rows([0])([]))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentFault, match="pip install 'onnxruntime>="):
        made.engine(folder)
