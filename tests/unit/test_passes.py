"""Passes over captured graphs: what each does to the operations, and that the numbers stay."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.unit.graph_compare import compare, run
from tests.unit.graph_inputs import graphs, inputs, twin, weights
from vlmc.capture.capture import capture
from vlmc.capture.graph import Folded, Graph, Stored
from vlmc.capture.program import Draft
from vlmc.capture.stages import CacheKind
from vlmc.capture.values import value
from vlmc.passes.dead_constants import dead_constants
from vlmc.passes.dead_layers import dead_layers
from vlmc.passes.effect import Effect, amount
from vlmc.passes.fold_constants import fold_constants
from vlmc.passes.grouped_heads import grouped_heads
from vlmc.passes.image_masks import image_masks
from vlmc.passes.last_token import last_token
from vlmc.passes.merge_projections import merge_projections
from vlmc.passes.no_ops import no_ops
from vlmc.passes.pipeline import ONNX, TORCH, apply, optimise
from vlmc.passes.runtime_checks import runtime_checks
from vlmc.passes.shared_results import shared_results
from vlmc.passes.single_row import single_row
from vlmc.pipeline import load_spec, resolve

aten: Any = torch.ops.aten

SYSTEMS: list[tuple[str, CacheKind]] = [
    ("blip2", "growing"),
    ("blip2-flan-t5", "growing"),
    ("flamingo", "growing"),
    ("flamingo-3b", "growing"),
    ("flamingo-9b", "growing"),
    ("idefics-9b", "growing"),
    ("llava-1.5", "growing"),
    ("visualbert", "growing"),
    ("blip2", "static"),
    ("blip2-flan-t5", "static"),
    ("flamingo", "static"),
    ("idefics-9b", "static"),
    ("llava-1.5", "static"),
    ("llava-1.5", "paged"),
]
"""Every system, and every way of serving with a cache written in place."""

TOLERANCE = 1e-5


def operations(graph: Graph) -> Counter[str]:
    """How often each operator is called."""
    program: Any = graph.program
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def gap(spec: str, before: Graph, after: Graph) -> float:
    return compare(before, after, weights(spec), inputs(spec, before))


@pytest.mark.parametrize(("spec", "kind"), SYSTEMS)
def test_numbers_stay_after_every_pass(spec: str, kind: CacheKind) -> None:
    for graph in graphs(spec, kind).values():
        now = graph
        for one in ONNX if kind == "growing" else TORCH:
            after = apply(now, [one])
            if after is not now:
                assert gap(spec, graph, after) <= TOLERANCE, (one.__name__, graph.name)
            now = after
        assert len(now.program.graph.nodes) < len(graph.program.graph.nodes)


def test_numbers_stay_after_the_passes_of_quantised_graphs() -> None:
    graph = graphs("llava-1.5", "growing")["decoder"]
    told: list[str] = []
    after = optimise(graph, "quantised", lambda effect: told.append(effect.pass_name))
    assert "last_token_after_attention" in told
    assert gap("llava-1.5", graph, after) <= TOLERANCE


def test_numbers_depend_on_every_float_input() -> None:
    """Else equal numbers would say nothing."""
    for spec in ("llava-1.5", "idefics-9b", "blip2-flan-t5"):
        graph = graphs(spec, "growing")["decoder"]
        given = inputs(spec, graph)
        logits = run(graph, weights(spec), given)[0]
        for place, wire in enumerate(graph.inputs):
            if wire.number == "float":
                changed = given[place] + torch.randn_like(given[place])
                other = [*given[:place], changed, *given[place + 1 :]]
                assert (run(graph, weights(spec), other)[0] - logits).abs().max() > 1e-4, wire.name


def test_a_comparison_notices_what_differs() -> None:
    class Body(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
            cache.add_(self.factor)
            return (x * 2).sqrt()

    def graph(factor: float) -> Graph:
        program = torch.export.export(Body(factor), (torch.zeros(2), torch.zeros(2)))
        return Graph(name="one", program=program, inputs=(), outputs=(), bounds={}, constants={})

    given = [torch.ones(2), torch.zeros(2)]
    assert compare(graph(1.0), graph(1.0), {}, given) == 0.0
    # What is written into an input counts as well.
    assert compare(graph(1.0), graph(1.5), {}, given) == pytest.approx(0.5)
    assert math.isnan(compare(graph(1.0), graph(1.0), {}, [-torch.ones(2), torch.zeros(2)]))


def test_the_original_graph_is_left_alone() -> None:
    graph = graphs("llava-1.5", "growing")["decoder"]
    before = str(graph.program.graph)
    optimise(graph, "onnx")
    assert str(graph.program.graph) == before


def test_effects_are_told_in_the_order_of_the_passes() -> None:
    heard: list[Effect] = []
    optimise(graphs("llava-1.5", "growing")["decoder"], "onnx", heard.append)
    names = [one.__name__ for one in ONNX]
    assert [effect.pass_name for effect in heard] == sorted(
        (effect.pass_name for effect in heard), key=names.index
    )
    assert {"dead_constants", "last_token", "merge_projections"} <= {
        effect.pass_name for effect in heard
    }
    assert all(effect.graph_name == "decoder" and effect.text for effect in heard)


def test_dead_vision_layers_go() -> None:
    graph = graphs("llava-1.5", "growing")["vision"]
    heard: list[Effect] = []
    after = apply(graph, [dead_layers], heard.append)
    # The twin has three layers, and the features are those before the last.
    gone = set(graph.constants) - set(after.constants)
    assert gone
    assert all(target.startswith("model.encoder.layers.2.") for target in gone)
    assert not any("encoder.layers.2" in target for target in after.constants)
    assert any("encoder.layers.1" in target for target in after.constants)
    assert operations(after) == operations(graph)
    (effect,) = heard
    assert effect.text.startswith("vision layer 3 of 3, past the chosen features, removed: ")
    # A tower that is read to its end, and a graph without one, have none.
    assert apply(after, [dead_layers]) is after
    decoder = graphs("llava-1.5", "growing")["decoder"]
    assert apply(decoder, [dead_layers]) is decoder
    assert ONNX[0] is TORCH[0] is dead_layers


def test_layers_past_the_features_are_named_by_number() -> None:
    arch = resolve(
        load_spec(
            ROOT / "specs" / "llava-1.5.yaml",
            ["encoder.layers=5", "encoder.features.layer=2", "language.layers=1"],
        ),
        mini=False,
    )
    heard: list[Effect] = []
    (vision,) = (one for one in capture(arch, cache="growing") if one.name == "vision")
    apply(vision, [dead_layers], heard.append)
    assert heard[0].text.startswith("vision layers 3 to 5 of 5, ")


def test_constants_of_other_graphs_go() -> None:
    graph = graphs("llava-1.5", "growing")["vision"]
    after = apply(graph, [dead_constants])
    assert not any(target.startswith("model.language") for target in after.constants)
    assert set(after.constants) == set(after.program.state_dict)
    assert operations(after) == operations(graph)


@pytest.mark.parametrize(
    ("spec", "stage", "linears", "merged"),
    [
        ("llava-1.5", "decoder", (36, 21), ("query_key_value.weight", "gate_up.weight")),
        ("llava-1.5", "vision", (14, 10), ("query_key_value.weight", "query_key_value.bias")),
        ("idefics-9b", "vision", (36, 25), ("key_value.weight", "query_key_value.bias")),
    ],
)
def test_projections_merge(
    spec: str, stage: str, linears: tuple[int, int], merged: tuple[str, ...]
) -> None:
    graph = apply(graphs(spec, "growing")[stage], [dead_constants])
    after = apply(graph, [merge_projections])
    counts = [operations(one)["aten.linear.default"] for one in (graph, after)]
    assert tuple(counts) == linears
    for name in merged:
        target = next(one for one in after.constants if one.endswith(f".{name}"))
        constant = after.constants[target]
        assert isinstance(constant, Stored)
        roles = [part.split(".")[-2] for part in constant.parts]
        assert "_".join(roles) == name.split(".")[0]
        whole = value(constant, weights(spec))
        parts = [weights(spec)[part] for part in constant.parts]
        torch.testing.assert_close(whole, torch.cat(parts))
        assert not any(f"model.{part}" in after.constants for part in constant.parts)


def test_no_ops_and_checks_of_types_go() -> None:
    graph = graphs("llava-1.5", "growing")["decoder"]
    after = apply(graph, [no_ops])
    was, now = operations(graph), operations(after)
    assert was["aten._assert_tensor_metadata.default"] > 20
    assert now["aten._assert_tensor_metadata.default"] == 0
    # Casts of whole numbers to fp32 for the rotation stay.
    assert (was["aten.to.dtype"], now["aten.to.dtype"]) == (28, 3)


def test_assertions_go_for_onnx_and_stay_for_torch() -> None:
    graph = graphs("llava-1.5", "growing")["decoder"]
    after = apply(graph, [runtime_checks])
    assert operations(graph)["aten._assert_scalar.default"] > 20
    assert operations(after)["aten._assert_scalar.default"] == 0
    assert operations(after)["<built-in function eq>"] == 0
    assert runtime_checks in ONNX
    assert runtime_checks not in TORCH


def test_sinusoids_and_masks_are_computed_once() -> None:
    graph = apply(graphs("flamingo", "growing")["decoder"], [dead_constants, no_ops])
    after = apply(graph, [shared_results])
    layers = len(_layers(graph))
    assert operations(graph)["aten.sin.default"] == layers > 1
    assert operations(after)["aten.sin.default"] == 1
    assert operations(graph)["aten.any.dim"] > 1
    assert operations(after)["aten.any.dim"] == 1
    assert gap("flamingo", graph, after) == 0.0


def test_reads_of_a_cache_are_not_shared_across_a_write() -> None:
    """Two sums over a tensor that is written into between them differ."""

    class Body(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = x[:, :2].sum()
            x[:, :1].add_(7.0)
            return x[:, :2].sum() - before

    program = torch.export.export(Body(), (torch.zeros(2, 3),))
    graph = replace(graphs("llava-1.5", "static")["embed"], program=program, constants={})
    after = apply(graph, [shared_results])
    given = [torch.zeros(2, 3)]
    assert float(run(after, {}, [given[0].clone()])[0]) == 14.0
    assert compare(graph, after, {}, given) == 0.0


def test_gates_and_frequencies_are_folded() -> None:
    graph = apply(graphs("idefics-9b", "growing")["decoder"], [dead_constants, no_ops])
    after = apply(graph, [fold_constants])
    assert operations(graph)["aten.tanh.default"] == 6
    assert operations(after)["aten.tanh.default"] == 0
    assert operations(after)["aten.pow.Scalar"] == 0
    folded = {name: one for name, one in after.constants.items() if isinstance(one, Folded)}
    assert len(folded) == 7
    gate = next(one for one in folded.values() if one.parts and "attention_gate" in one.parts[0])
    torch.testing.assert_close(
        value(gate, weights("idefics-9b")), weights("idefics-9b")[gate.parts[0]].tanh()
    )
    # Weights in another number format are brought to that of the graph first.
    half = {name: one.bfloat16() for name, one in weights("idefics-9b").items()}
    assert value(gate, half).dtype == torch.float32


def test_normed_queries_are_folded() -> None:
    graph = apply(graphs("blip2", "growing")["vision"], [dead_constants, no_ops])
    after = apply(graph, [fold_constants])
    norms = [operations(one)["aten.layer_norm.default"] for one in (graph, after)]
    assert norms[1] == norms[0] - 1
    assert "model.adapter.queries" not in after.constants


def test_large_results_are_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = apply(graphs("flamingo", "growing")["vision"], [dead_constants, no_ops])
    monkeypatch.setattr("vlmc.passes.fold_constants.LIMIT", 64)
    after = apply(graph, [fold_constants])
    folded = [name for name, one in after.constants.items() if isinstance(one, Folded)]
    assert folded
    assert all(after.program.state_dict[name].numel() <= 64 for name in folded)
    # The scale of a standardised kernel is small, the kernel is not.
    assert operations(after)["aten.rsqrt.default"] < operations(graph)["aten.rsqrt.default"]
    assert operations(after)["aten.sub.Tensor"] > 0
    assert gap("flamingo", graph, after) <= TOLERANCE


@pytest.mark.parametrize(
    ("spec", "kind", "stage"),
    [
        ("llava-1.5", "growing", "decoder"),
        ("llava-1.5", "static", "prefill"),
        ("flamingo", "static", "prefill"),
        ("idefics-9b", "growing", "decoder"),
        ("blip2", "static", "prefill"),
    ],
)
def test_the_last_block_is_computed_for_the_last_token(
    spec: str, kind: CacheKind, stage: str
) -> None:
    graph = apply(graphs(spec, kind)[stage], [dead_constants, no_ops, shared_results])
    after = apply(graph, [last_token])
    last = f"layers.{len(_layers(graph)) - 1}."
    extents = {name: _tokens(after, f"{last}{name}.weight") for name in _layers(graph)[last]}
    assert extents.pop("attention.key") != "1"
    assert extents.pop("attention.value") != "1"
    extents.pop("attention.distance", None)
    assert "attention.query" in extents
    assert "mlp.down" in extents
    assert set(extents.values()) == {"1"}, extents
    # Nothing is computed twice.
    linears = [operations(one)["aten.linear.default"] for one in (graph, after)]
    assert linears[0] == linears[1]
    before = f"layers.{len(_layers(graph)) - 2}."
    assert _tokens(after, f"{before}mlp.down.weight") != "1"
    assert gap(spec, graph, after) <= TOLERANCE


def _layers(graph: Graph) -> dict[str, list[str]]:
    """Names of the linears in each layer of a language model."""
    found: dict[str, list[str]] = {}
    draft = Draft(graph)
    for linear in draft.calls(aten.linear.default):
        target = draft.targets.get(linear.args[1], "")
        if target.startswith("model.language.layers."):
            number, name = target.removeprefix("model.language.layers.").split(".", 1)
            found.setdefault(f"layers.{number}.", []).append(name.removesuffix(".weight"))
    return found


def _tokens(graph: Graph, ending: str) -> str:
    """For how many tokens the product with a weight is computed."""
    draft = Draft(graph)
    for linear in draft.calls(aten.linear.default):
        target = draft.targets.get(linear.args[1], "")
        if target.startswith("model.language.") and target.endswith(ending):
            return str(linear.meta["val"].shape[1])
    raise AssertionError(f"no product with {ending}")


def test_masks_are_worked_out_by_image() -> None:
    graph = apply(graphs("idefics-9b", "growing")["decoder"], [dead_constants, no_ops])
    after = apply(graph, [image_masks, shared_results])
    images = 2 * twin("idefics-9b").tokens.per_image
    assert _widths(graph, aten.any.dim) == {"visual"} != _widths(after, aten.any.dim) == {"images"}
    assert operations(after)["aten.repeat_interleave.self_int"] == 1
    assert operations(after)["aten.__or__.Tensor"] < operations(graph)["aten.__or__.Tensor"]
    assert images > 2
    assert gap("idefics-9b", graph, after) == 0.0


def _widths(graph: Graph, operator: Any) -> set[str]:
    """Over what an operator goes on its last axis."""
    draft = Draft(graph)
    seen = next(node for node in draft.inputs if node.meta["val"].dtype is torch.bool)
    images = str(seen.meta["val"].shape[-1])
    return {
        "images" if str(call.args[0].meta["val"].shape[-1]) == images else "visual"
        for call in draft.calls(operator)
    }


@pytest.mark.parametrize("spec", ["llava-1.5", "blip2"])
def test_single_rows_are_sums_of_products(spec: str) -> None:
    graph = graphs(spec, "static")["decode_one"]
    after = apply(graph, [single_row])
    linears = operations(graph)["aten.linear.default"]
    assert linears > 0
    assert operations(after)["aten.linear.default"] == 0
    sums = [operations(one)["aten.sum.dim_IntList"] for one in (graph, after)]
    assert sums[1] - sums[0] == linears
    assert gap(spec, graph, after) <= TOLERANCE
    # With several rows matrix routines are the better choice.
    several = graphs(spec, "static")["decode"]
    assert apply(several, [single_row]) is several


@pytest.mark.parametrize(
    ("width", "parts"), [(4096, [4096]), (4097, [17, 241]), (4099, [4099]), (11008, [4, 2752])]
)
def test_long_single_rows_are_sums_of_partial_sums(width: int, parts: list[int]) -> None:
    class Body(torch.nn.Module):
        def forward(self, row: Any, weight: Any, bias: Any) -> torch.Tensor:
            return torch.nn.functional.linear(row, weight, bias)

    given = [torch.randn(1, 1, width), torch.randn(3, width) / width, torch.randn(3)]
    program = torch.export.export(Body(), tuple(given))
    graph = Graph(name="one", program=program, inputs=(), outputs=(), bounds={}, constants={})
    after = apply(graph, [single_row])
    assert operations(after)["aten.sum.dim_IntList"] == len(parts)
    (product,) = Draft(after).calls(aten.mul.Tensor)
    assert list(product.meta["val"].shape) == [3, *parts]
    assert compare(graph, after, {}, given) <= TOLERANCE


def test_partial_sums_of_16_bits_are_not_rounded() -> None:
    """A total of fp16 whose parts are beyond it."""

    class Body(torch.nn.Module):
        def forward(self, row: Any, weight: Any) -> torch.Tensor:
            return torch.nn.functional.linear(row, weight)

    row = torch.full((1, 1, 4 * 2752), 8.0, dtype=torch.float16)
    weight = torch.full((3, 4 * 2752), 4.0, dtype=torch.float16)
    weight[:, 2 * 2752 :] = -4.0
    program = torch.export.export(Body(), (row, weight))
    graph = Graph(name="one", program=program, inputs=(), outputs=(), bounds={}, constants={})
    after = apply(graph, [single_row])
    assert operations(after)["aten.sum.dim_IntList"] == 2
    assert after.program.module()(row, weight).tolist() == [[[0.0] * 3]]


def test_grouped_heads_are_read_once() -> None:
    class Body(torch.nn.Module):
        def forward(self, query: Any, key: Any, value: Any, mask: Any) -> torch.Tensor:
            keys, values = (one.repeat_interleave(3, dim=1) for one in (key, value))
            return torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask)

    def captured(queries: int) -> tuple[Graph, list[torch.Tensor]]:
        given = [torch.randn(2, 6, queries, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)]
        mask = torch.ones(2, 1, queries, 5, dtype=torch.bool)
        mask[0, :, :, 3:] = False
        given.append(mask)
        program = torch.export.export(Body(), tuple(given))
        made = Graph(name="one", program=program, inputs=(), outputs=(), bounds={}, constants={})
        return made, given

    graph, given = captured(1)
    after = apply(graph, [grouped_heads])
    assert operations(graph)["aten.repeat_interleave.self_int"] == 2
    assert operations(after)["aten.repeat_interleave.self_int"] == 0
    assert compare(graph, after, {}, given) <= TOLERANCE
    several, _ = captured(4)
    assert apply(several, [grouped_heads]) is several


def test_amounts_are_short() -> None:
    assert [amount(n) for n in (950, 12_345, 1_250_000, 7_100_000_000)] == [
        "950",
        "12.3k",
        "1.25M",
        "7.1B",
    ]


def _forgets_a_constant(draft: Draft) -> str:
    draft.constants.pop(next(iter(draft.constants)))
    return "done"


def _swaps_outputs(draft: Draft) -> str:
    results: Any = draft.output.args[0]
    draft.output.args = (tuple(reversed(results)),)
    return "done"


def _forgets_a_value(draft: Draft) -> str:
    del draft.calls()[0].meta["val"]
    return "done"


def _bends_a_shape(draft: Draft) -> str:
    target = next(iter(draft.state))
    draft.state[target] = torch.nn.Parameter(torch.zeros(1))
    return "done"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_forgets_a_constant, "comes from nowhere"),
        (_swaps_outputs, "its outputs were"),
        (_forgets_a_value, "missing val"),
        (_bends_a_shape, "has two shapes"),
    ],
)
def test_a_broken_pass_is_named(broken: Any, said: str) -> None:
    graph = graphs("llava-1.5", "growing")["decoder"]
    with pytest.raises(AssertionError, match=rf"pass {broken.__name__} .*decoder.*{said}"):
        apply(graph, [broken])


def test_twins_are_what_the_tests_take_them_for() -> None:
    assert twin("llava-1.5").serving == "sequence"
    assert {twin(spec).serving for spec, _ in SYSTEMS} == {
        "sequence",
        "cross_attention",
        "encoder_decoder",
        "single_pass",
    }
