"""ONNX graphs give what the model gives: all eight systems, in their real runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.parity.onnx_twins import Twin, operators, relative, twin
from vlmc.builder.weights import save_weights

NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "specs").glob("*.yaml"))
OLDER = ("llava-1.5", "flamingo-3b")
STEPS = 16
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_logits_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    made = twin(name)
    save_weights(made.model, tmp_path / "weights")
    for opset in (23, 20) if name in OLDER else (23,):
        folder = made.write(tmp_path / "weights", tmp_path / f"onnx{opset}", opset)
        _check_constants(folder)
        if made.design.serving == "single_pass":
            _check_answers(made, folder)
        else:
            _check_generation(made, folder)


def _check_generation(made: Twin, folder: Path) -> None:
    eager, engine = made.eager, made.engine(folder)
    plain, ours = eager.encode_images(made.pixels()), engine.encode_images(made.pixels())
    most = min(2, made.design.max_images)
    for counts in ([1], [most, 0, 1], [0]):
        rows = made.rows(counts)
        state, wanted = eager.prefill(rows(plain))
        other, got = engine.prefill(rows(ours))
        assert relative(wanted, got) <= TOLERANCE
        for _ in range(STEPS):
            tokens = wanted.argmax(axis=-1)
            assert tokens.tolist() == got.argmax(axis=-1).tolist()
            wanted, got = eager.step(state, tokens), engine.step(other, tokens)
            assert relative(wanted, got) <= TOLERANCE
    # The images matter.
    shown = made.rows([1])
    _, one = engine.prefill(shown(ours))
    _, another = engine.prefill(shown(ours[1:]))
    assert relative(one, another) > 1e-3


def _check_answers(made: Twin, folder: Path) -> None:
    eager, engine = made.eager, made.engine(folder)
    plain, ours = eager.encode_images(made.pixels()), engine.encode_images(made.pixels())
    for counts in ([1], [2, 0, 1], [0]):
        rows = made.rows(counts)
        wanted, got = eager.answer(rows(plain)), engine.answer(rows(ours))
        assert set(wanted) == set(got)
        assert all(relative(wanted[key], got[key]) <= TOLERANCE for key in wanted)
    shown = made.rows([1])
    one, another = engine.answer(shown(ours)), engine.answer(shown(ours[1:]))
    assert relative(one["logits"], another["logits"]) > 1e-3


def _check_constants(folder: Path) -> None:
    """Every initializer is a tensor (or neighbours) of a safetensors file below the folder."""
    for path in folder.glob("*.onnx"):
        model = onnx.load(str(path), load_external_data=False)
        assert b"vlmc/" not in path.read_bytes()
        for one in model.graph.initializer:
            assert one.data_location == onnx.TensorProto.EXTERNAL, one.name
            place = {entry.key: entry.value for entry in one.external_data}
            begin = int(place["offset"])
            _check_place(folder / place["location"], begin, begin + int(place["length"]))
        for node in model.graph.node:
            if node.op_type == "Constant":
                assert len(node.attribute[0].t.raw_data) <= 64, node.name


def _check_place(file: Path, begin: int, end: int) -> None:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    starts = {8 + length + entry["data_offsets"][0] for entry in header.values()}
    ends = {8 + length + entry["data_offsets"][1] for entry in header.values()}
    assert begin in starts
    assert end in ends


def test_newer_opsets_have_nodes_of_their_own(tmp_path: Path) -> None:
    made = twin("llava-1.5")
    save_weights(made.model, tmp_path / "weights")
    native = {"Attention", "RMSNormalization", "RotaryEmbedding"}
    new = made.write(tmp_path / "weights", tmp_path / "new", 23)
    old = made.write(tmp_path / "weights", tmp_path / "old", 20)
    assert native <= operators(new / "decoder.onnx")
    assert not native & operators(old / "decoder.onnx")
    decoder = onnx.load(str(new / "decoder.onnx"), load_external_data=False)
    dims = {
        one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim]
        for one in [*decoder.graph.input, *decoder.graph.output]
    }
    heads, width = dims["past_key_values.0.key"][1], dims["past_key_values.0.key"][3]
    assert isinstance(heads, int)
    assert dims["past_key_values.0.key"] == ["batch_size", heads, "past_sequence_length", width]
    assert dims["present.0.key"] == ["batch_size", heads, "total_sequence_length", width]
    assert dims["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert dims["logits"] == ["batch_size", 1, made.design.vocabulary]
    # Rotation, norm and attention of every layer, without a transposition of heads to the front.
    kinds = [node.op_type for node in decoder.graph.node]
    layers = sum(name.startswith("present.") for name in dims) // 2
    assert kinds.count("Attention") == layers
    assert kinds.count("RotaryEmbedding") == 2 * layers
    assert kinds.count("RMSNormalization") == 2 * layers + 1
    assert "Transpose" not in kinds


def test_a_step_allocates_no_cache(tmp_path: Path) -> None:
    made = twin("llava-1.5")
    save_weights(made.model, tmp_path / "weights")
    engine = made.engine(made.write(tmp_path / "weights", tmp_path / "onnx"))
    rows = made.rows([0, 0])
    state, logits = engine.prefill(rows([]))
    logits = engine.step(state, logits.argmax(axis=-1))
    before = [[one.ctypes.data for one in buffers] for buffers in state.sets]
    for _ in range(STEPS):
        logits = engine.step(state, logits.argmax(axis=-1))
    assert [[one.ctypes.data for one in buffers] for buffers in state.sets] == before
    assert len({address for buffers in before for address in buffers}) == 2 * len(before[0])


def test_two_generations_go_on_at_once(tmp_path: Path) -> None:
    made = twin("llava-1.5")
    save_weights(made.model, tmp_path / "weights")
    engine = made.engine(made.write(tmp_path / "weights", tmp_path / "onnx"))
    tokens = np.array([7])
    alone, _ = engine.prefill(made.rows([0])([]))
    expected = [engine.step(alone, tokens).copy() for _ in range(3)]
    first, _ = engine.prefill(made.rows([0])([]))
    second, _ = engine.prefill(made.rows([0, 0, 0])([]))
    for wanted in expected:
        assert relative(wanted, engine.step(first, tokens)) == 0
        engine.step(second, np.array([5, 6, 7]))
