"""What an encoder takes that is split over fewer devices than the language model."""

from __future__ import annotations

from math import ceil

import pytest
from graph_reports import BATCH, IMAGES, TEXT, TOKENS, block, cluster, small_device

from vlmc.analysis.report import GraphReport
from vlmc.partition.costs import BlockCost, Rooflines
from vlmc.partition.part import summed_gradients
from vlmc.partition.request import Request
from vlmc.partition.setting import Setting
from vlmc.partition.space import placements

TENSOR = 8


def lines(images: int, **asked: int) -> Rooflines:
    """A trained encoder of 4 heads and a language model of 8, over a tensor group of 8."""
    seen = BATCH * IMAGES * TOKENS
    blocks = (
        block("encoder.*", "encoder", 1, 80_000, seen, 64, trained=True, reached=True, limits=(4,)),
        block("language.*", "language", 1, 80_000, BATCH * TEXT, 64, trained=True, reached=True,
              limits=(8,)),
    )  # fmt: skip
    report = GraphReport(
        design="two", mode="train", trained=("encoder", "language"), number_bytes=2,
        blocks=blocks, order=(0, 1),
    )  # fmt: skip
    request = Request(mode="train", batch=1, text=32, images=images, tokens=16, **asked)
    return Rooflines(report, cluster(small_device(10), TENSOR), request)


def cost(images: int, degree: int) -> BlockCost:
    return lines(images).blocks(1, TENSOR, False, degree)[0]


@pytest.mark.parametrize("images", [8, 3])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_copies_share_images_and_their_ranks_share_layers(images: int, degree: int) -> None:
    one, copies = lines(images).blocks(1, 1, False, 1)[0], TENSOR // degree
    found, share = cost(images, degree), ceil(images / copies) / images
    assert found.parameters == one.parameters / degree
    assert found.exchanged.forward == pytest.approx((degree > 1) * share * 2 * one.output)
    assert found.saved[0] <= share * one.saved[0]
    assert found.gathered == (int(one.output * share * copies), 0)
    # Each way ends with the visual tokens of all images on each device.
    assert found.output == one.output


@pytest.mark.parametrize("zero", [0, 3])
def test_copies_sum_gradients_of_what_each_device_holds(zero: int) -> None:
    made = lines(8)
    at = Setting(data=2, zero=zero, tensor=TENSOR, placement="replicated", encoder_tensor=2)
    size, ranks = summed_gradients(at, made.report.blocks[0], made.blocks(*at.costed)[0])
    assert (size, ranks) == (80_000 / 2 * 4 / (2 if zero else 1), 4)
    assert summed_gradients(at, made.report.blocks[1], made.blocks(*at.costed)[1])[0] == 0


def test_each_degree_that_divides_heads_and_group_is_tried() -> None:
    every = (("replicated", 1), ("replicated", 2), ("replicated", 4))
    assert placements(lines(8), TENSOR, 1) == every
    assert placements(lines(8), 4, 1) == (("spread", None), *every[:2])
    assert placements(lines(8, encoder_tensor=2), TENSOR, 1) == (("replicated", 2),)
    assert placements(lines(8, encoder_tensor=2), 2, 1) == (("spread", None),)
    assert placements(lines(8, encoder_tensor=8), TENSOR, 1) == ()
