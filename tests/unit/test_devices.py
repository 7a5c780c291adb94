"""Every device's figures are the published dense ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from vlmc.hardware import BYTES, BadDevice, device, names
from vlmc.hardware.device import UPDATED, Device
from vlmc.hardware.efficiency import Kind
from vlmc.ir.training import OPTIMISERS

PUBLISHED = {
    "a100-40gb": (40, 1555, 312, None, 624, 600),
    "a100-80gb": (80, 2039, 312, None, 624, 600),
    "a100-80gb-pcie": (80, 1935, 312, None, 624, 64),
    "h100-sxm": (80, 3350, 989, 1979, 1979, 900),
    "h100-pcie": (80, 2000, 756, 1513, 1513, 600),
    "h200": (141, 4800, 989, 1979, 1979, 900),
    "b200": (180, 7700, 2250, 4500, 4500, 1800),
    "l40s": (48, 864, 362, 733, 733, 64),
    "l4": (24, 300, 121, 242, 242, 64),
    "t4": (16, 320, None, None, 130, 32),
    "rtx-4090": (24, 1008, 165, 330, 660, 64),
    "mi300x": (192, 5300, 1307, 2615, 2615, 896),
}
"""GB, GB/s, then dense bf16, fp8 and int8 in tera-operations a second, then link GB/s."""


def test_each_device_has_a_row_and_back() -> None:
    assert set(names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", names())
def test_figures_are_the_published_ones(name: str) -> None:
    card = device(name)
    rates = card.tflops
    assert (
        card.memory_gb,
        card.memory_gbps,
        rates.get("bf16"),
        rates.get("fp8"),
        rates.get("int8"),
        card.link_gbps,
    ) == PUBLISHED[name]
    assert card.about
    assert card.source
    assert set(rates) <= set(BYTES)


@pytest.mark.parametrize("name", names())
def test_no_figure_is_sparse(name: str) -> None:
    """Half the bits double a dense rate; a sparse figure among dense ones would quadruple it."""
    rates = device(name).tflops
    half = rates["fp16"]
    assert rates.get("bf16", half) == half
    assert rates.get("tf32", half / 2) == pytest.approx(half / 2, rel=0.015)
    assert rates.get("fp8", 2 * half) == pytest.approx(2 * half, rel=0.015)
    accumulates_slowly = name == "rtx-4090"  # floats in fp32 at half rate, integers at full rate
    assert rates["int8"] == pytest.approx((4 if accumulates_slowly else 2) * half, rel=0.015)


def test_an_unknown_device_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        device("a10g")


@pytest.mark.parametrize("name", names())
def test_a_device_says_what_of_its_peak_is_reached(name: str) -> None:
    card = device(name)
    assert card.node
    assert card.efficiency.source.startswith("assumed") != card.efficiency.measured
    large, small = card.efficiency.compute_share(1e15), card.efficiency.compute_share(1e6)
    assert 0 < small < large < 1
    assert card.seconds(1e6, 0, "fp16") == pytest.approx(card.seconds(1e3, 0, "fp16"))
    assert card.seconds(1e3, 1e12, "fp16") == card.moving_seconds(1e12) > 1 / card.memory_gbps
    assert card.seconds(0, 0, "fp16") == 0


def test_an_h200_reaches_what_was_measured_on_one() -> None:
    """A bf16 product of 8192^3 at 769 to 798 TFLOP/s; a device copy at 4.3 TB/s."""
    card = device("h200")
    flops = 2 * 8192**3
    assert 769e12 < flops / card.seconds(flops, 0, "bf16") < 798e12
    assert 20e9 / card.moving_seconds(20e9) == pytest.approx(4.3e12, rel=0.01)


SOUND = """about: mine
source: measured
memory_gb: 8
memory_gbps: 40
tflops: {fp32: 0.2}
efficiency: {matmul: [[1e6, 0.5], [1e9, 1.0]], memory: [[1e6, 1.0]], measured: true, source: mine}
"""


def test_a_file_is_a_device(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SOUND, encoding="utf-8")
    card = device(str(path))
    assert (card.name, card.per_node, card.link_gbps, card.network_gbps) == ("mine", 1, None, None)
    middle, seconds = (1e6 + 1e9) / 2, (1e6 / 0.5 + 1e9 / 1.0) / 2
    assert card.efficiency.compute_share(middle) == pytest.approx(middle / seconds)


@pytest.mark.parametrize("name", names())
def test_more_work_never_takes_less_time(name: str) -> None:
    card = device(name)
    sizes = [1.1**power for power in range(400)]
    number = "bf16" if "bf16" in card.tflops else "fp32"
    products = [card.seconds(size, 0, number) for size in sizes]
    moves = [card.moving_seconds(size) for size in sizes]
    for seconds in (products, moves):
        assert all(two >= one * (1 - 1e-12) for one, two in pairwise(seconds))


def _card(more: str, tmp_path: Path) -> Device:
    """SOUND with more in its efficiency."""
    path = tmp_path / "mine.yaml"
    path.write_text(SOUND.replace("measured: true", f"{more}measured: true"), encoding="utf-8")
    return device(str(path))


def test_without_curves_of_their_own_kinds_of_work_are_products_and_moves(tmp_path: Path) -> None:
    card = _card("", tmp_path)
    product = card.seconds(1e8, 0, "fp32")
    assert card.seconds(1e8, 0, "fp32", "attention") == product > 0
    assert card.seconds(1e8, 0, "fp32", "attention_backward") == product
    assert card.seconds(1e8, 8e6, "fp32", "function") == card.moving_seconds(8e6) > 0
    assert card.update_seconds(1e5, "adamw") == card.moving_seconds(80e5)
    assert card.update_seconds(1e5, "sgd") == card.moving_seconds(12e5)
    assert card.efficiency.call_us == 0


def test_each_kind_of_work_has_a_curve_of_its_own(tmp_path: Path) -> None:
    card = _card(
        "attention: [[1e6, 0.25]], attention_backward: [[1e6, 0.125]], functions: [[1e6, 0.5]], "
        "adamw: [[1e4, 0.5], [1e6, 2.0]], call_us: 7, ",
        tmp_path,
    )
    assert card.seconds(1e9, 0, "fp32", "attention") == pytest.approx(1e9 / 0.25 / 0.2e12)
    assert card.seconds(1e9, 0, "fp32", "attention_backward") == pytest.approx(1e9 / 0.125 / 0.2e12)
    assert card.seconds(1e9, 0, "fp32") == pytest.approx(1e9 / 0.2e12)
    assert card.seconds(0, 4e9, "fp32", "function") == pytest.approx(4 / 0.5 / 40)
    assert card.seconds(0, 4e9, "fp32", "elementwise") == pytest.approx(4 / 40)
    # A product that moves much is held to the bandwidth of moves.
    assert card.seconds(1, 4e9, "fp32", "attention") == pytest.approx(4 / 40)
    assert card.update_seconds(1e8, "adamw") == pytest.approx(80e8 / 2 / 40e9)
    assert card.update_seconds(1e8, "sgd") == pytest.approx(12e8 / 40e9)
    # Below the first point a call takes as long as there.
    assert card.update_seconds(10, "adamw") == pytest.approx(card.update_seconds(1e4, "adamw"))


SERVING = (
    "serving: {memory: [[1e6, 4.0]], functions: [[1e6, 3.0]], cache: [[1e6, 2.0]], "
    "query: [[1e6, 0.5]], rows: {1: [[1e6, 1.0]], 4: [[1e6, 0.5]]}, call_us: 3}, "
)


def test_what_keeps_nothing_has_curves_of_its_own(tmp_path: Path) -> None:
    card = _card(SERVING, tmp_path)

    def taken(flops: float, size: float, kind: Kind, number: str = "fp32") -> tuple[float, float]:
        """In shares of the bandwidth: when serving, and in training."""
        return tuple(
            size / 40e9 / card.seconds(flops, size, number, kind, serving=serving)
            for serving in (True, False)
        )  # type: ignore[return-value]

    assert taken(0, 8e6, "elementwise") == pytest.approx((4, 1))
    assert taken(0, 8e6, "function") == pytest.approx((3, 1))
    assert taken(0, 8e6, "cache") == pytest.approx((2, 1))
    # Keys and values for one query: two FLOPs for each of their numbers.
    assert taken(2e6, 4e6 + 64, "attention") == pytest.approx((0.5, 1))
    many = taken(64e6, 4e6, "attention")
    assert many[0] == many[1]
    # One row of 1,000 by 1,000 weights; then four of them, two and 32.
    products = {rows: taken(2e6 * rows, 4e6 + 8e3 * rows, "linear") for rows in (1, 2, 4, 32)}
    assert products[1][0] == pytest.approx(1)
    assert products[2][0] == pytest.approx(1 / (1 * 2 / 3 + 2 * 1 / 3), rel=1e-2)
    assert products[4][0] == pytest.approx(0.5, rel=1e-6)
    assert products[32][0] == products[32][1]
    assert taken(2e6, 4e6, "matmul") == taken(2e6, 4e6, "linear")[1:] * 2


@pytest.mark.parametrize("kind", ["matmul", "attention", "function", "elementwise"])
def test_more_work_takes_longer_and_none_no_time(kind: Kind, tmp_path: Path) -> None:
    curves = "attention: [[1e6, 0.25], [1e8, 0.6]], functions: [[1e5, 0.1], [1e7, 0.5]], "
    card = _card(curves, tmp_path)
    taken = [card.seconds(10**size, 10**size, "fp32", kind) for size in range(5, 13)]
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]
    assert card.seconds(0, 0, "fp32", kind) == 0
    assert card.update_seconds(0, "adamw") == 0


def test_each_optimiser_that_a_plan_may_name_moves_bytes() -> None:
    assert set(UPDATED) == set(OPTIMISERS)
    assert all(UPDATED[name] >= 12 + 2 * state for name, state in OPTIMISERS.items() if state)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("measured: true", "measured: true, attention: [[2, 1], [1, 1]]", "sizes must rise"),
        ("measured: true", "measured: true, adamw: []", "efficiency.adamw"),
        (
            "measured: true",
            SERVING.replace("query: [[1e6, 0.5]]", "query: [[2, 1], [1, 1]]") + "measured: true",
            "sizes must rise",
        ),
        (
            "measured: true",
            SERVING.replace("rows: {1:", "rows: {0:") + "measured: true",
            "efficiency.serving.rows",
        ),
        ("measured: true", "measured: true, formats: {bf16: [[2, 1], [1, 1]]}", "sizes must rise"),
        ("measured: true", "measured: true, call_us: -1", "efficiency.call_us: input should be"),
        ("memory_gbps: 40", "memory_gbps: 0", "memory_gbps: input should be greater than 0"),
        ("{fp32: 0.2}", "{fp32: 0}", "tflops.fp32: input should be greater than 0"),
        ("source: measured\n", "", "source: field required"),
        ("[1e6, 0.5], [1e9, 1.0]", "[1e9, 1.0], [1e6, 0.5]", "sizes must rise"),
        ("about: mine", "about: mine\nlink_gbps: -3", "link_gbps: input should be greater than 0"),
        ("about: mine", "about: mine\nlinks: 3", "links: extra inputs"),
        (SOUND, "- 3", "no mapping"),
        (SOUND, "a: [", "it is no YAML"),
    ],
)
def test_a_bad_file_is_answered_in_a_sentence(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(SOUND.replace(old, new), encoding="utf-8")
    with pytest.raises(BadDevice) as caught:
        device(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_is_answered_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadDevice, match="cannot be read: No such file"):
        device(str(tmp_path / "none.yaml"))
