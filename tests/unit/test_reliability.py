"""What slow devices and failures cost: by hand, by formula, and by playing it through."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, expm1, inf, sqrt
from random import Random
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmc.diagnostics import UsageError
from vlmc.partition.reliability import factor, goodput, stragglers
from vlmc.partition.schedule import order, simulate


def constant(**seconds: float) -> Callable[[int, str, int], float]:
    return lambda stage, op, micro_batch: seconds[op]


def at_once(_from: int, _to: int) -> float:
    return 0.0


TIMES = constant(F=1, B=2)


def test_one_slow_device_slows_its_whole_pipeline() -> None:
    orders = order("gpipe", 2, 4)
    told = stragglers(orders, TIMES, at_once, {(1, 1): 1.25})
    assert told.healthy_seconds == 3 * (4 + 1)
    # The first stage is a forward pass ahead and a backward pass behind the slow one, which works
    # without a pause: 12 seconds of work take 15.
    assert told.step_seconds == 1 + 15 + 2
    assert told.slowest == (1, 1)
    assert told.slowdown == 18 / 15


def test_a_device_that_lacks_a_fifth_of_its_speed_takes_a_quarter_longer() -> None:
    assert factor(20) == 1.25
    assert factor(0) == 1
    for percent in (-1, 100, inf, float("nan")):
        with pytest.raises(UsageError, match="percent slow"):
            factor(percent)


def test_the_slowest_replica_decides() -> None:
    orders = order("1f1b", 2, 4)
    alone = stragglers(orders, TIMES, at_once, {(3, 1): 1.5})
    both = stragglers(orders, TIMES, at_once, {(0, 0): 1.1, (3, 1): 1.5, (5, 0): 1.2})
    assert both == alone
    # Two slow stages of one replica hinder each other; of two replicas they do not.
    same = stragglers(orders, TIMES, at_once, {(0, 0): 1.5, (0, 1): 1.5})
    assert same.step_seconds == 1.5 * same.healthy_seconds > alone.step_seconds


def test_nobody_slow_and_a_faster_device() -> None:
    orders = order("gpipe", 3, 4)
    healthy = simulate(orders, TIMES, at_once).seconds
    for slow in ({}, {(0, 1): 1.0}, {(0, 1): 0.5}):
        told = stragglers(orders, TIMES, at_once, slow)
        assert (told.step_seconds, told.slowdown, told.slowest) == (healthy, 1, (0, 0))


def test_a_slow_frozen_encoder_has_no_backward_pass_to_be_slow_in() -> None:
    orders = order("gpipe", 2, 4)
    told = stragglers(orders, TIMES, at_once, {(0, 0): 2.0}, first_backward=1)
    assert told.healthy_seconds == 1 + 4 + 8
    assert told.step_seconds == 2 * 4 + 1 + 8


@pytest.mark.parametrize("slow", [{(0, 2): 1.2}, {(0, -1): 1.2}, {(-1, 0): 1.2}])
def test_a_device_that_is_not_there(slow: dict[tuple[int, int], float]) -> None:
    with pytest.raises(UsageError, match="groups 0 to 1"):
        stragglers(order("gpipe", 2, 4), TIMES, at_once, slow)


@pytest.mark.parametrize("times", [0, -1, inf, float("nan")])
def test_a_factor_that_means_nothing(times: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        stragglers(order("gpipe", 2, 4), TIMES, at_once, {(0, 0): times})


def played(
    random: Random, intervals: int, interval: float, mean: float, save: float, restart: float
) -> float:
    """Seconds until so many intervals of work are done and saved, with failures thrown by dice."""
    clock, done = 0.0, 0
    next_failure = random.expovariate(1 / mean)
    while done < intervals:
        if clock + interval + save <= next_failure:
            clock += interval + save
            done += 1
            continue
        clock = next_failure
        next_failure = clock + random.expovariate(1 / mean)
        while next_failure < clock + restart:  # a failure during the restart starts that again
            clock = next_failure
            next_failure = clock + random.expovariate(1 / mean)
        clock += restart
    return clock


@pytest.mark.parametrize(
    ("nodes", "mtbf_hours", "save", "restart"),
    [(128, 10_000.0, 60.0, 600.0), (128, 300.0, 120.0, 900.0), (8, 2.0, 30.0, 100.0)],
)
def test_the_goodput_is_the_one_that_dice_give(
    nodes: int, mtbf_hours: float, save: float, restart: float
) -> None:
    told = goodput(7.0, nodes * 8, mtbf_hours, save, restart, per_node=8)
    random = Random(0)
    shares = [
        200
        * told.interval_seconds
        / played(random, 200, told.interval_seconds, told.mtbf_seconds, save, restart)
        for _ in range(300)
    ]
    # Mean of times, not of shares, is what the formula gives; the four sigmas are of times, too.
    times = [1 / share for share in shares]
    tolerance = 4 * stdev(times) / sqrt(len(times))
    assert tolerance < 0.03 / told.goodput
    assert abs(fmean(times) - 1 / told.goodput) < tolerance


@given(
    st.floats(0.1, 100),
    st.integers(1, 4096),
    st.floats(1, 1e5),
    st.floats(0, 600),
    st.floats(0, 3600),
)
def test_no_other_interval_is_better(
    step: float, devices: int, hours: float, save: float, restart: float
) -> None:
    told = goodput(step, devices, hours, save, restart, per_node=8)
    assert 0 <= told.goodput <= 1
    assert 0 <= told.saving <= 1
    assert told.goodput + told.saving + told.lost == pytest.approx(1)
    assert told.interval_seconds == told.interval_steps * step
    mean = told.mtbf_seconds
    if told.goodput < 1e-200:
        return
    for steps in {1, 2, told.interval_steps - 1, told.interval_steps + 1, 3 * told.interval_steps}:
        if steps >= 1 and (steps * step + save) / mean < 600:
            other = (
                steps * step / (mean * exp(restart / mean) * expm1((steps * step + save) / mean))
            )
            assert other <= told.goodput * (1 + 1e-9)


def test_young_and_daly() -> None:
    told = goodput(1.0, 1, 1000 / 3600, 10.0, 0.0, per_node=1)
    assert told.mtbf_seconds == pytest.approx(1000)
    assert told.young_seconds == pytest.approx(sqrt(2 * 10 * 1000))
    # Daly's form is within a step of the exact best where checkpoints are short against failures.
    assert abs(told.interval_steps - told.daly_seconds) <= 1
    # Figures 3 to 5 of his paper: checkpoints of 5 minutes, a failure each 24 h, 6 h, 15 minutes.
    for hours, minutes in ((24, 117), (6, 57), (0.25, 9.1)):
        figure = goodput(1.0, 1, hours, 300.0, 600.0, per_node=1).daly_seconds / 60
        assert round(figure, 0 if minutes > 10 else 1) == minutes
    assert goodput(1.0, 1, 1.0, 8000.0, 0.0, per_node=1).daly_seconds == pytest.approx(3600)


@pytest.mark.parametrize("hours", [1e9, 1e14, 1e16, 1e100])
def test_where_failures_are_rare_young_is_right(hours: float) -> None:
    told = goodput(4.4, 1024, hours, 0.9, 300.0, per_node=8)
    assert told.interval_seconds == pytest.approx(told.young_seconds, rel=1e-4)
    assert told.goodput > 1 - 1e-5


def test_what_changes_the_goodput() -> None:
    base: dict[str, Any] = {
        "step_seconds": 5.0,
        "devices": 1024,
        "mtbf_hours": 5000.0,
        "checkpoint_seconds": 60.0,
        "restart_seconds": 600.0,
        "per_node": 8,
    }
    usual = goodput(**base)
    assert usual.mtbf_seconds == pytest.approx(5000 * 3600 / 128)
    assert 0.9 < usual.goodput < 1
    assert usual.step_seconds == pytest.approx(5 / usual.goodput)
    for change in ({"mtbf_hours": 500.0}, {"checkpoint_seconds": 600.0}, {"devices": 8192}):
        assert goodput(**(base | change)).goodput < usual.goodput
    # A node is lost as a whole, also one that is not full.
    assert goodput(**(base | {"devices": 1017})).goodput == usual.goodput
    # Saving that takes no time is done after each step.
    assert goodput(**(base | {"checkpoint_seconds": 0.0})).interval_steps == 1


def test_where_nothing_can_be_done() -> None:
    lost = goodput(10.0, 8, 0.001, 1.0, 3600.0, per_node=8)
    assert (lost.goodput, lost.step_seconds) == (0, inf)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step_seconds", 0.0),
        ("devices", 0),
        ("mtbf_hours", 0.0),
        ("mtbf_hours", float("nan")),
        ("per_node", 0),
        ("checkpoint_seconds", -1.0),
        ("restart_seconds", inf),
    ],
)
def test_times_that_mean_nothing(name: str, value: float) -> None:
    usual: dict[str, Any] = {
        "step_seconds": 5.0,
        "devices": 8,
        "mtbf_hours": 5000.0,
        "checkpoint_seconds": 60.0,
        "restart_seconds": 600.0,
        "per_node": 8,
    }
    with pytest.raises(UsageError, match="must be"):
        goodput(**(usual | {name: value}))
