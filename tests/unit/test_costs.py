"""What a block takes: which curve times an operator, calls, updates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graph_reports import TEXT, block, cluster, small_device

from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import GraphReport, Operator
from vlmc.hardware.device import Device
from vlmc.hardware.efficiency import Kind, Serving
from vlmc.partition.chain import Chain
from vlmc.partition.costs import BlockCost, Rooflines
from vlmc.partition.part import parts
from vlmc.partition.request import Request
from vlmc.partition.setting import Setting
from vlmc.partition.work import kind_of

ONE = Polynomial.constant(1)


@pytest.mark.parametrize(
    ("name", "matmul", "kind"),
    [
        ("aten.mm", True, "linear"),
        ("aten.addmm", True, "linear"),
        ("aten.bmm", True, "matmul"),
        ("aten.convolution_backward", True, "matmul"),
        ("aten._scaled_dot_product_flash_attention_for_cpu", True, "attention"),
        ("aten._scaled_dot_product_flash_attention_for_cpu_backward", True, "attention_backward"),
        ("aten.gelu_backward", False, "function"),
        ("aten._log_softmax", False, "function"),
        ("aten.native_layer_norm", False, "function"),
        ("aten.add", False, "elementwise"),
        ("aten.cat", False, "cache"),
        ("aten._to_copy", False, "elementwise"),
        ("aten.embedding_dense_backward", False, "elementwise"),
    ],
)
def test_an_operator_is_timed_by_the_curve_of_its_kind(name: str, matmul: bool, kind: Kind) -> None:
    operator = Operator(name=name, phase="forward", calls=1, flops=ONE, bytes=ONE, matmul=matmul)
    assert kind_of(operator) == kind


def _device(**efficiency: Any) -> Device:
    card = small_device(10)
    return card.model_copy(update={"efficiency": card.efficiency.model_copy(update=efficiency)})


def _lines(card: Device, **request: Any) -> Rooflines:
    """A design of one trained block: four products and two additions a phase."""
    only = block("language.*", "language", 1, 10_000, TEXT, 64, trained=True, reached=True)
    tensors = (1_000, 9_000)
    only = replace(only, tensors=tensors, rows=tensors, split_along=(0, 0))
    report = GraphReport(
        design="one",
        mode="train",
        trained=("language",),
        number_bytes=2,
        blocks=(only,),
        order=(0,),
    )
    asked = Request(mode="train", batch=4, text=32, **request)
    return Rooflines(report, cluster(card, 1), asked)


def test_each_call_takes_a_time_of_its_own() -> None:
    before = _lines(_device()).blocks(1, 1, False, 1)[0]
    after = _lines(_device(call_us=5.0)).blocks(1, 1, False, 1)[0]
    for phase in ("forward", "backward_input", "backward_weight"):
        assert getattr(after, phase) - getattr(before, phase) == pytest.approx(6 * 5e-6)


def test_a_call_takes_less_where_nothing_is_kept() -> None:
    """As do additions, whose results lie in a cache; products without a curve take as long."""
    curve = ((1.0, 1.0),)
    quick = Serving(
        memory=((1.0, 2.0),), functions=curve, rows={1: curve}, cache=curve, query=curve, call_us=2
    )
    cards = _device(call_us=5.0), _device(call_us=5.0, serving=quick)
    asked = replace(_lines(cards[0]).request, mode="serve")
    one, two = (_lines(card).asked(asked).blocks(1, 1, False, 1)[0].forward for card in cards)
    assert one - two >= 6 * 3e-6
    training = _lines(_device(call_us=5.0, serving=quick)).blocks(1, 1, False, 1)[0]
    assert training == _lines(_device(call_us=5.0)).blocks(1, 1, False, 1)[0]


def test_what_runs_again_takes_its_hooks_too() -> None:
    plain = _lines(_device(call_us=5.0)).blocks(1, 1, False, 1)[0]
    cost = _lines(_device(call_us=5.0, again_us=40.0)).blocks(1, 1, False, 1)[0]
    assert cost.forward == plain.forward
    assert plain.again[0] == 0 < plain.again[1] <= plain.again[2] <= plain.forward
    for kept in (1, 2):
        assert cost.again[kept] - plain.again[kept] == pytest.approx(6 * 40e-6)


def test_gradients_that_are_put_off_have_blocks_computed_again_twice() -> None:
    """And pass through them twice; the bubble stays what it is."""
    lines = _lines(_device())
    cost = lines.blocks(1, 1, False, 1)[0]
    at = Setting(pipeline=2, micro_batches=2, schedule="zero_bubble")
    (none,) = parts(lines, at)
    (full,) = parts(lines, replace(at, keeps=(("language.*", "full"),)))
    (once,) = parts(lines, replace(at, keeps=(("language.*", "full"),), schedule="1f1b"))
    assert once.backward == pytest.approx(none.backward + cost.again[2])
    assert full.backward == pytest.approx(once.backward + cost.again[2] + cost.backward_input)
    assert full.backward - 2 * full.weights_late == pytest.approx(
        none.backward - 2 * none.weights_late
    )


def test_a_block_that_is_computed_again_for_its_weights_has_all_gradients_at_once() -> None:
    lines = _lines(_device(), precision="fp32")
    halves = replace(lines.report.blocks[0], tensors=(5_000, 5_000))
    lines.report = replace(lines.report, blocks=(halves,))
    at = Setting(pipeline=2, micro_batches=2, schedule="zero_bubble")
    (none,) = parts(lines, at)
    (full,) = parts(lines, replace(at, keeps=(("language.*", "full"),)))
    assert full.again_peak == full.first_peak > full.backward_peak
    assert none.again_peak == 0


def test_each_parameter_is_updated_by_itself() -> None:
    """Small parameters take as long as the first point of the curve."""
    lines = _lines(_device(adamw=((4_000.0, 0.1), (8_000.0, 0.4))))
    card = lines.cluster.device
    least = 80 * 4_000 / (20e9 * 0.1)
    assert lines.update(0, 1.0) == pytest.approx(least + 80 * 9_000 / (20e9 * 0.4))
    assert lines.update(0, 0.1) == pytest.approx(2 * least)
    assert card.update_seconds(9_000, "adamw") < lines.update(0, 1.0)


def test_the_fullest_device_has_the_most_words_of_a_vocabulary() -> None:
    def cost(words: int, tensor: int) -> BlockCost:
        size = 15 * 2**20
        only = block("head", "head", 1, size, TEXT, 64, reached=True, limits=(words,))
        lines = _lines(_device())
        lines.report = replace(lines.report, blocks=(only,))
        return lines.blocks(1, tensor, False, tensor)[0]

    whole, uneven, even = cost(5, 1), cost(5, 2), cost(6, 2)
    assert (whole.parameters, uneven.parameters, even.parameters) == (
        15 * 2**20, 9 * 2**20, 7.5 * 2**20,
    )  # fmt: skip
    assert even.backward_input < uneven.backward_input < whole.backward_input
    assert even.saved[0] < uneven.saved[0] < whole.saved[0]


def test_a_block_of_unknown_parameters_is_updated_as_one() -> None:
    lines = _lines(_device())
    unknown = replace(lines.report.blocks[0], tensors=(), rows=(), split_along=())
    lines.report = replace(lines.report, blocks=(unknown,))
    assert lines.update(0, 1.0) == lines.cluster.device.update_seconds(10_000, "adamw")


def test_sharded_states_are_updated_by_their_replica() -> None:
    """What a step takes once is the update of a device's own part."""
    whole = Chain(_lines(_device()), Setting(micro_batch=4))
    lines = _lines(_device())
    lines.cluster = cluster(_device(), 2)
    shared = Chain(lines, Setting(data=2, zero=2, micro_batch=2))
    assert whole.parts[0].update == lines.update(0, 1.0)
    assert shared.parts[0].update == lines.update(0, 0.5) < lines.update(0, 1.0)


def test_plain_descent_moves_less_than_adamw() -> None:
    adamw, sgd = (_lines(_device(), optimiser=name).update(0, 1.0) for name in ("adamw", "sgd"))
    assert 0 < sgd < adamw
