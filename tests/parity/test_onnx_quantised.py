"""Quantised decoders: a cache written in place, and no node that a step does not need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from engine_cases import calls
from onnx_twins import Twin, relative, twin

from vlmc.builder.weights import save_weights
from vlmc.emit.onnx.writer import Writer, silent
from vlmc.emit.options import Options
from vlmc.passes.pipeline import optimise
from vlmc.runtime.engines import onnx_graph

STEPS = 4


def _written(made: Twin, folder: Path) -> Path:
    save_weights(made.model, folder / "weights")
    made.write(folder / "weights", folder / "onnx")
    options = Options(quantize="int8")
    Writer(made.arch, folder / "weights", folder / "onnx", options, silent).write_quantised(
        [optimise(graph, "quantised") for graph in made.captured]
    )
    return folder / "onnx"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _written(twin("llava-1.5"), tmp_path_factory.mktemp("llava"))


def _nodes(path: Path) -> Iterator[Any]:
    yield from onnx.load(str(path), load_external_data=False).graph.node


def test_a_layer_has_only_what_computes(folder: Path) -> None:
    """Positions and padding are worked out once, and a layer has what it computes with:
    projection, attention, projection, norm, projection, split, gate (2), product, projection,
    norm: SiLU is two nodes that the runtime makes one of."""
    nodes = list(_nodes(folder / "decoder.int8.onnx"))
    kinds = Counter(node.op_type for node in nodes)
    layers = kinds["GroupQueryAttention"]
    assert layers == sum("past_key_values" in n for node in nodes for n in node.input) // 2 > 0
    assert kinds["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert kinds["Split"] == kinds["Sigmoid"] == layers
    assert kinds["MatMulNBits"] == 4 * layers + 1
    assert not kinds.keys() & {"Attention", "RotaryEmbedding", "Gemm", "Transpose"}
    # What lies between two products is shaped as they take it.
    makers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == "MatMulNBits":
            assert makers[node.input[0]].op_type != "Reshape"
    computing = {"MatMulNBits", "GroupQueryAttention", "Split", "Sigmoid", "Mul"}
    computing |= {"SkipSimplifiedLayerNormalization", "RMSNormalization", "Constant"}
    once = sum(node.op_type not in computing for node in nodes)
    assert once < 35, "positions and padding are worked out once, not for each layer"


def test_rows_of_unlike_lengths_answer_as_alone(folder: Path) -> None:
    made = twin("llava-1.5")
    engine = made.engine(folder, "int8")
    rows = made.rows([1, 0, 1])(engine.encode_images(made.pixels()))
    tokens = np.array([5, 9, 11])
    state, logits = engine.prefill(rows)
    found = [logits.copy(), *(engine.step(state, tokens + i).copy() for i in range(STEPS))]
    for index, row in enumerate(rows):
        alone, logits = engine.prefill([row])
        steps = (engine.step(alone, tokens[[index]] + i).copy() for i in range(STEPS))
        own = [logits.copy(), *steps]
        for got, wanted in zip(found, own, strict=True):
            assert relative(wanted[0], got[index]) < 0.03
    shuffled, logits = engine.prefill([rows[0]])
    assert relative(found[1][0], engine.step(shuffled, tokens[[1]])[0]) > 0.1


def test_quantised_tokens_follow_the_plain_ones(folder: Path) -> None:
    made = twin("llava-1.5")
    plain, packed = made.engine(folder), made.engine(folder, "int8")
    features = plain.encode_images(made.pixels())
    rows = made.rows([1, 0])(features)
    (one, wanted), (two, got) = plain.prefill(rows), packed.prefill(rows)
    for _ in range(STEPS):
        assert relative(wanted, got) < 0.1
        tokens = wanted.argmax(axis=-1)
        wanted, got = plain.step(one, tokens), packed.step(two, tokens)
    rows = made.rows([1, 0])(features[1:])
    assert relative(wanted, packed.prefill(rows)[1]) > 0.2  # the image matters


def test_a_step_allocates_nothing(folder: Path) -> None:
    made = twin("llava-1.5")
    engine = made.engine(folder, "int8")
    state, logits = engine.prefill(made.rows([0, 0])([]))
    engine.step(state, logits.argmax(axis=-1))
    before = _addresses(state)
    assert len(state.sets) == 1
    for _ in range(STEPS):
        old = state.sets[0][0][:, :, : state.length].copy()
        logits = engine.step(state, logits.argmax(axis=-1))
        # The newest token stands behind the others, which stay as they are.
        assert (state.sets[0][0][:, :, : state.length - 1] == old).all()
    assert _addresses(state) == before


class Noting:
    """A binding that notes what is bound to it."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.bound: list[str] = []

    def bind_input(self, name: str, *given: Any) -> None:
        self.bound.append(name)
        self.binding.bind_input(name, *given)

    def bind_output(self, name: str, *given: Any) -> None:
        self.bound.append(name)
        self.binding.bind_output(name, *given)


@pytest.mark.parametrize("variant", [None, "int8"])
def test_a_step_costs_the_same_python_whatever_the_depth(variant: str | None, folder: Path) -> None:
    made = twin("llava-1.5")
    engine = made.engine(folder, variant)
    state, logits = engine.prefill(made.rows([0, 0])([]))
    tokens = logits.argmax(axis=-1)
    engine.step(state, tokens)
    assert len(state.tensors) >= 8
    found = calls(lambda: engine.step(state, tokens))
    assert max(found.values()) <= 4 < len(state.tensors), found


def test_a_step_binds_only_what_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = twin("llava-1.5")
    engine = made.engine(folder, "int8")
    state, logits = engine.prefill(made.rows([0, 0])([]))
    logits = engine.step(state, logits.argmax(axis=-1))  # binds where tokens lie from now on
    run = state.graph.session.run_with_iobinding
    noting = Noting(state.binding)
    state.binding = noting
    session = SimpleNamespace(run_with_iobinding=lambda binding: run(binding.binding))
    monkeypatch.setattr(state.graph, "session", session)
    monkeypatch.setattr(state.graph, "inputs", None)  # what it takes is known before
    for _ in range(STEPS):
        noting.bound.clear()
        logits = engine.step(state, logits.argmax(axis=-1))
        assert noting.bound == ["attention_mask"]  # it has a token more on each step


def _addresses(state: Any) -> list[int]:
    single = (state.seen, state.mask, state.ids, state.newest, state.logits, state.bound)
    held = [*single, *(one for buffers in state.sets for one in buffers)]
    return [one.ctypes.data for one in held]


@pytest.mark.parametrize("variant", [None, "int8"])
def test_what_a_cache_holds_survives_its_growth(
    variant: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = twin("llava-1.5")
    engine = made.engine(folder, variant)

    def generated() -> list[Any]:
        state, logits = engine.prefill(made.rows([0, 0])([]))
        steps = (engine.step(state, np.array([7, 8]) + i).copy() for i in range(6))
        return [logits.copy(), *steps]

    wanted = generated()
    monkeypatch.setattr(onnx_graph, "ONNX_ROOM", 1)
    for one, two in zip(wanted, generated(), strict=True):
        assert relative(one, two) < 1e-6


@pytest.mark.parametrize("variant", ["", ".int8"])
def test_padding_may_stand_before_a_prompt_or_behind_it(variant: str, folder: Path) -> None:
    session = ort.InferenceSession(str(folder / f"decoder{variant}.onnx"))
    inputs = {one.name: one for one in session.get_inputs()}
    outputs = [one.name for one in session.get_outputs()]
    draw = np.random.default_rng(0)
    width = inputs["inputs_embeds"].shape[2]
    tokens, padding = (draw.standard_normal((1, n, width), np.float32) for n in (10, 5))

    def generated(prompt: Any, seen: list[int]) -> list[Any]:
        past = {
            name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
            for name, one in inputs.items()
            if name.startswith("past_key_values.")
        }
        logits: list[Any] = []
        for newest in (prompt, tokens[:, 8:9], tokens[:, 9:]):
            mask = np.array([[*seen, *[1] * len(logits)]])
            given = {"inputs_embeds": newest, "attention_mask": mask, **past}
            found = dict(zip(outputs, session.run(None, given), strict=True))
            past = {name: found[name.replace("past_key_values", "present")] for name in past}
            logits.append(found["logits"])
        return logits

    prompt = tokens[:, :8]
    wanted = generated(prompt, [1] * 8)
    before = generated(np.concatenate((padding, prompt), axis=1), [0] * 5 + [1] * 8)
    behind = generated(np.concatenate((prompt, padding), axis=1), [1] * 8 + [0] * 5)
    for one, two, three in zip(wanted, before, behind, strict=True):
        # A rounding of activations that falls the other way is more than one of a product.
        assert relative(one, two) < (0.01 if variant else 1e-5)
        assert relative(one, three) < (0.01 if variant else 1e-5)
