"""The simulated pipeline: closed forms, frozen stages, orders that cannot be worked through."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmc.partition.plan import Schedule
from vlmc.partition.schedule import (
    Action,
    IllegalOrder,
    Timeline,
    bubble_share,
    moments,
    most_held,
    most_put_off,
    order,
    refusal,
    simulate,
)

SCHEDULES: list[Schedule] = ["gpipe", "1f1b", "interleaved", "zero_bubble"]


def constant(**seconds: float) -> Callable[[int, str, int], float]:
    return lambda stage, op, micro_batch: seconds[op]


def at_once(_from: int, _to: int) -> float:
    return 0.0


ALIKE = constant(F=1, B=2, I=1, W=1)


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 8),
    st.integers(1, 24),
    st.integers(1, 4),
    st.sampled_from([0.5, 1.0, 2.0, 3.0]),
)
def test_closed_forms_hold(
    schedule: Schedule, ranks: int, micro_batches: int, chunks: int, backward: float
) -> None:
    if refusal(schedule, ranks, micro_batches, chunks):
        return
    times = constant(F=1, B=backward, I=1, W=1)
    timeline = simulate(order(schedule, ranks, micro_batches, chunks), times, at_once)
    share = bubble_share(schedule, ranks, micro_batches, chunks)
    if share is not None:
        for rank in range(ranks):
            assert timeline.bubble(rank) == pytest.approx(share, abs=1e-12)
    for rank in range(ranks):
        held = most_held(schedule, rank, ranks, micro_batches, chunks)
        assert held is None or held == timeline.peak(rank)
    if schedule == "zero_bubble" and chunks == 1:
        for rank, actions in enumerate(order(schedule, ranks, micro_batches)):
            waiting = accumulate((one.op == "I") - (one.op == "W") for one in actions)
            assert rank == 0 or max(waiting) == most_put_off(rank, micro_batches)


@pytest.mark.parametrize(("ranks", "rounds", "chunks"), [(2, 2, 2), (3, 7, 2), (4, 9, 4)])
def test_what_a_rank_holds_of_each_stage_is_as_in_the_whole_order(
    ranks: int, rounds: int, chunks: int
) -> None:
    micro_batches = ranks * rounds
    for rank, actions in enumerate(order("interleaved", ranks, micro_batches, chunks)):
        held = [0] * chunks
        seen: set[tuple[int, tuple[int, ...]]] = set()
        for one in actions:
            at = one.stage // ranks
            held[at] += one.op == "F"
            seen.add((at, tuple(held)))
            held[at] -= one.op == "B"
        kept = moments("interleaved", rank, ranks, micro_batches, chunks)
        assert set(kept) <= seen
        for at, counts in seen:
            assert any(
                at == place and all(a >= b for a, b in zip(more, counts, strict=True))
                for place, more in kept
            )
    first = moments("interleaved", 0, ranks, micro_batches, chunks)
    assert max(counts[0] for _, counts in first) > max(counts[-1] for _, counts in first)


def test_the_closed_forms_of_the_papers() -> None:
    assert bubble_share("1f1b", 4, 16) == bubble_share("gpipe", 4, 16) == 3 / 19
    assert bubble_share("interleaved", 4, 16, 2) == 3 / 35
    assert bubble_share("zero_bubble", 4, 16) == 3 / 51
    assert [most_held("1f1b", rank, 4, 16) for rank in range(4)] == [4, 3, 2, 1]
    assert [most_held("zero_bubble", rank, 4, 16) for rank in range(4)] == [4, 4, 4, 4]
    assert [most_put_off(rank, 16) for rank in range(4)] == [0, 2, 3, 4]
    # Korthikanti et al.: 1 + (p - 1) / (p v) times as much on the first rank as 1F1B's p.
    assert most_held("interleaved", 0, 4, 16, 2) == 2 * 4 * (1 + 3 / (4 * 2))
    # Where no form is known none is given.
    assert bubble_share("interleaved", 4, 10, 2) is None
    assert bubble_share("zero_bubble", 4, 16, 2) is None
    assert most_held("zero_bubble", 0, 4, 16, 2) is None
    assert most_held("interleaved", 0, 4, 10, 2) is None


@given(st.sampled_from(SCHEDULES), st.integers(1, 5), st.integers(1, 12), st.integers(1, 3))
def test_nothing_starts_before_what_it_needs(
    schedule: Schedule, ranks: int, micro_batches: int, chunks: int
) -> None:
    if refusal(schedule, ranks, micro_batches, chunks):
        return
    random = Random(f"{schedule} {ranks} {micro_batches} {chunks}")
    took = {
        action: random.random()
        for actions in order(schedule, ranks, micro_batches, chunks)
        for action in actions
    }
    timeline = simulate(
        order(schedule, ranks, micro_batches, chunks),
        lambda *action: took[Action(*action)],
        lambda one, other: 0.1 * one + 0.3 * other,
    )
    spans = {
        action: (start, end) for rank in range(ranks) for action, start, end in timeline.rows(rank)
    }
    last = ranks * chunks - 1
    gradient = "I" if schedule == "zero_bubble" else "B"
    for rank in range(ranks):
        clock = 0.0
        for (stage, op, micro_batch), start, end in timeline.rows(rank):
            needs = {clock}
            sent = 0.0
            other = stage
            if op == "W":
                needs.add(spans[Action(stage, "I", micro_batch)][1])
            elif op == "F":
                other = max(stage - 1, 0)
            else:
                needs.add(spans[Action(stage, "F", micro_batch)][1])
                other = min(stage + 1, last)
            if other != stage:
                sent = 0.1 * other + 0.3 * stage if ranks > 1 else 0.0
                key = Action(other, "F" if op == "F" else gradient, micro_batch)
                needs.add(spans[key][1] + sent)
            # As early as can be: at the latest of what it needs.
            assert start == max(needs)
            assert end == start + took[Action(stage, op, micro_batch)]
            clock = end


def test_a_hand_made_timeline() -> None:
    timeline = simulate(order("1f1b", 2, 2), constant(F=1, B=2), lambda _from, _to: 0.5)
    assert timeline.order(0) == [
        Action(0, "F", 0),
        Action(0, "F", 1),
        Action(0, "B", 0),
        Action(0, "B", 1),
    ]
    assert timeline.starts == ((0, 1, 5, 8), (1.5, 2.5, 4.5, 5.5))
    assert timeline.ends == ((1, 2, 7, 10), (2.5, 4.5, 5.5, 7.5))
    assert timeline.seconds == 10
    assert timeline.bubble(0) == timeline.bubble_share == 0.4
    assert timeline.in_flight(0) == [(0, 1), (1, 2), (7, 1), (10, 0)]
    assert timeline.in_flight(1) == [(1.5, 1), (4.5, 0), (4.5, 1), (7.5, 0)]
    assert timeline.peak(0, lambda stage: 7.0) == 14


def test_what_chunks_hold_is_summed_by_their_sizes() -> None:
    timeline = simulate(order("interleaved", 2, 2, 2), ALIKE, at_once)
    sizes = {0: 1.0, 1: 10.0, 2: 100.0, 3: 1000.0}
    assert timeline.peak(0, sizes.__getitem__) == 202
    assert timeline.peak(1, sizes.__getitem__) == 1020


def test_frozen_stages_get_no_gradient_and_keep_nothing() -> None:
    orders = order("gpipe", 3, 4)
    frozen = simulate(orders, ALIKE, lambda one, other: 5.0, first_backward=2)
    # Two hops forward, then on the last stage four forward and four backward passes; no hop back.
    assert frozen.seconds == 2 * (1 + 5) + 4 * 1 + 4 * 2
    assert [frozen.peak(rank) for rank in range(3)] == [0, 0, 4]
    assert frozen.order(0) == orders[0]
    assert frozen.busy(0) == 4
    # An executor may as well leave those actions out.
    short = [[one for one in actions if one.op == "F"] for actions in orders[:2]] + [orders[2]]
    assert simulate(short, ALIKE, lambda one, other: 5.0, first_backward=2).seconds == 24
    # A frozen encoder does not wait for its gradients: 1F1B's first stage runs ahead.
    ahead = simulate(order("1f1b", 2, 8), ALIKE, at_once, first_backward=1)
    assert ahead.ends[0][-1] == 8
    assert ahead.seconds == 1 + 8 * 3


def test_forward_only() -> None:
    forwards = [[Action(rank, "F", number) for number in range(5)] for rank in range(3)]
    timeline = simulate(forwards, ALIKE, at_once)
    assert timeline.seconds == 7


def test_nothing_to_do() -> None:
    empty = simulate([[], []], ALIKE, at_once)
    assert (empty.seconds, empty.bubble_share, empty.peak(0)) == (0, 0, 0)
    assert isinstance(empty, Timeline)


def swapped(orders: list[list[Action]], rank: int, one: int, other: int) -> list[list[Action]]:
    actions = orders[rank]
    actions[one], actions[other] = actions[other], actions[one]
    return orders


def test_orders_that_wait_for_each_other_are_refused() -> None:
    # Rank 0 wants a gradient before it sends the input without which rank 1 does not begin with it.
    with pytest.raises(IllegalOrder) as caught:
        simulate(swapped(order("gpipe", 2, 2), 0, 1, 2), ALIKE, at_once)
    assert caught.value.action == Action(0, "B", 0)
    assert caught.value.needed == Action(1, "B", 0)
    told = str(caught.value)
    assert "rank 0 stands at the backward of micro-batch 0 on stage 0" in told
    assert "needs the backward of micro-batch 0 on stage 1" in told
    assert "rank 1 stands at the forward of micro-batch 1 on stage 1" in told
    assert "needs the forward of micro-batch 1 on stage 0" in told


def test_a_backward_pass_ahead_of_its_own_forward_pass_is_refused() -> None:
    with pytest.raises(IllegalOrder, match="for ever") as caught:
        simulate(swapped(order("1f1b", 1, 1), 0, 0, 1), ALIKE, at_once)
    assert (caught.value.action, caught.value.needed) == (Action(0, "B", 0), Action(0, "F", 0))
    zero = order("zero_bubble", 1, 1)
    with pytest.raises(IllegalOrder) as caught:
        simulate(swapped(zero, 0, 1, 2), ALIKE, at_once)
    assert (caught.value.action, caught.value.needed) == (Action(0, "W", 0), Action(0, "I", 0))


@pytest.mark.parametrize(
    ("schedule", "gone", "alone", "partner"),
    [
        ("1f1b", Action(1, "F", 1), Action(0, "F", 1), Action(1, "F", 1)),
        ("1f1b", Action(0, "F", 1), Action(0, "B", 1), Action(0, "F", 1)),
        ("1f1b", Action(1, "B", 1), Action(1, "F", 1), Action(1, "B", 1)),
        ("zero_bubble", Action(0, "I", 0), Action(0, "W", 0), Action(0, "I", 0)),
        ("zero_bubble", Action(1, "W", 0), Action(1, "I", 0), Action(1, "W", 0)),
    ],
)
def test_an_action_without_its_partner_is_refused(
    schedule: Schedule, gone: Action, alone: Action, partner: Action
) -> None:
    orders = [[one for one in actions if one != gone] for actions in order(schedule, 2, 2)]
    with pytest.raises(IllegalOrder, match="stands without") as caught:
        simulate(orders, ALIKE, at_once)
    assert (caught.value.action, caught.value.needed) == (alone, partner)


def test_what_stands_twice_or_has_two_ranks_is_refused() -> None:
    orders = order("gpipe", 2, 2)
    with pytest.raises(IllegalOrder, match="stands twice"):
        simulate([orders[0] + [Action(0, "B", 1)], orders[1]], ALIKE, at_once)
    moved = [orders[0][:-1], [*orders[1], orders[0][-1]]]
    with pytest.raises(IllegalOrder, match=r"rank 1 has the backward .* rank 0 has the"):
        simulate(moved, ALIKE, at_once)
    zero = order("zero_bubble", 2, 2)
    with pytest.raises(IllegalOrder, match="stands beside the input gradient"):
        simulate([[*zero[0], Action(0, "B", 0)], zero[1]], ALIKE, at_once)
    late = [[Action(0, "F", 0)], [Action(1, "F", 0), Action(1, "F", 1)]]
    with pytest.raises(IllegalOrder, match="stands without"):
        simulate(late, ALIKE, at_once)


def test_a_large_pipeline_is_small_work() -> None:
    """64 stages and 512 micro-batches: the work is counted, not timed; memory is measured."""
    asked = 0

    def count(stage: int, op: str, micro_batch: int) -> float:
        nonlocal asked
        asked += 1
        return 1.0

    timeline = simulate(order("zero_bubble", 64, 512), count, at_once)
    assert asked == 64 * 512 * 3
    assert timeline.bubble_share == pytest.approx(63 / (3 * 512 + 63))


def test_partition_needs_neither_torch_nor_numpy_and_little_memory() -> None:
    program = """
import sys, tracemalloc
tracemalloc.start()
from vlmc.partition.schedule import order, simulate, timeline_svg
from vlmc.partition import reliability
timeline = simulate(order("interleaved", 64, 512, 2), lambda *_: 1.0, lambda *_: 0.1)
timeline_svg(timeline, title="large")
assert not {"torch", "numpy"} & set(sys.modules)
print(tracemalloc.get_traced_memory()[1])
"""
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(told.stdout) < 400e6
