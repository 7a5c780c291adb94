"""Moments of a step that no sum of what each block holds shows, beside arithmetic by hand."""

from __future__ import annotations

from fractions import Fraction

import pytest

from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import Climb
from vlmc.partition.part import Part
from vlmc.partition.peaks import Peaks, sums

NOTHING = Part()
BATCH = Polynomial.symbol("batch")


def peaks(*chain: Part) -> Peaks:
    order = range(len(chain))
    saved = sums(chain, order, lambda part: part.saved)
    made = sums(chain, order, lambda part: part.gradients)
    return Peaks(chain, order, saved, made, None, tied=False)


def test_moments_below_another_are_left_out() -> None:
    moments = [(BATCH * 10, 0), (BATCH * 7, 1), (BATCH * 8, 2), (BATCH * 3, 2)]
    climb = Climb(tuple((size, Fraction(made, 2)) for size, made in moments))
    assert climb(batch=4) == ((32.0, 1.0), (40.0, 0.0))


@pytest.mark.parametrize("steady", [True, False])
def test_what_is_gathered_again_is_held_beside_all_that_is_saved(steady: bool) -> None:
    block = NOTHING._replace(saved=10.0)
    found = peaks(block, block, NOTHING._replace(saved=5.0, regathered=100.0))
    assert found.over(1, 0, 3, steady=steady) == 100
    assert found.over(1, 0, 2, steady=steady) == 0  # a stage without it


def test_what_follows_a_gathered_block_holds_what_its_gather_brought() -> None:
    block = NOTHING._replace(saved=10.0, received=7.0, forward_peak=14.0, sending=1.0)
    found = peaks(block, block, NOTHING._replace(forward_peak=9.0))
    assert found.over(1, 0, 3, steady=True) == 9 + 7
    assert found.over(1, 0, 2, steady=True) == 14


def test_gradients_of_a_first_backward_pass_come_block_by_block() -> None:
    block = NOTHING._replace(saved=10.0, gradients=6.0, first_peak=8.0, backward_peak=2.0)
    found = peaks(block, block, block)
    # Over 30 saved and 18 of gradients: the last block at work, and none of its gradients before.
    assert found.over(1, 0, 3, steady=False) == 8 - 18
    assert found.over(1, 0, 3, steady=True) == 2


def test_what_is_sent_is_there_when_all_that_was_saved_is_gone() -> None:
    block = NOTHING._replace(saved=1.0, sending=40.0, leaving=60.0)
    assert peaks(block).over(1, 0, 1, steady=True) == 60 - 1
    # The next one sends while this one runs.
    assert (
        peaks(block._replace(leaving=0.0), block._replace(leaving=0.0)).over(1, 0, 2, steady=True)
        == 40 + 1 - 2
    )
