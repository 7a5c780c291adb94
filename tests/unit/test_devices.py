"""Every device's figures are the published dense ones."""

from __future__ import annotations

import pytest

from vlmc.hardware import BYTES, device, names

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
