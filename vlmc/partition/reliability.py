"""What a slow device and what failures cost a training run, on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, exp, expm1, inf, log1p, sqrt

from vlmc.diagnostics.faults import UsageError
from vlmc.partition.schedule.orders import Op, Orders
from vlmc.partition.schedule.simulation import Durations, Transfer, simulate


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggling:
    """A step with slow devices beside one without. Seconds; communication that follows the
    backward passes is left out, as it is the same in both."""

    healthy_seconds: float
    step_seconds: float
    slowest: tuple[int, int]
    """(replica, pipeline group) whose slowness lasts longest; of a healthy run, (0, 0)."""

    @property
    def slowdown(self) -> float:
        """1 where slow devices cost nothing."""
        return self.step_seconds / self.healthy_seconds if self.healthy_seconds else 1.0


def factor(slow_percent: float) -> float:
    """How many times as long a device takes that is so many percent slow: at 80% of its speed, 1.25
    times. Raises UsageError for what no device is."""
    if not 0 <= slow_percent < 100:
        raise UsageError(f"a device is from 0 to less than 100 percent slow, not {slow_percent:g}")
    return 1 / (1 - slow_percent / 100)


def stragglers(
    orders: Orders,
    durations: Durations,
    transfer: Transfer,
    slow: Mapping[tuple[int, int], float],
    *,
    first_backward: int = 0,
) -> Straggling:
    """A step in which the devices of (replica, pipeline group) take `slow` times as long; see
    `factor`.

    One slow device slows its whole tensor group, which waits for it in every layer. Data-parallel
    replicas meet when they reduce gradients: the slowest replica decides. (Where weights are
    sharded over replicas they meet at every gathering, too, and then, again, the slowest decides.)
    """
    if any(not 0 < times < inf for times in slow.values()):
        raise UsageError("a device's slowness must be a finite number above 0")
    stage_rank = {one.stage: rank for rank, actions in enumerate(orders) for one in actions}
    for replica, rank in slow:
        if replica < 0 or not 0 <= rank < len(orders):
            raise UsageError(
                f"there is no pipeline group {rank} in replica {replica}: the pipeline has "
                f"groups 0 to {len(orders) - 1}"
            )

    def seconds(factors: Mapping[int, float]) -> float:
        def slowed(stage: int, op: Op, micro_batch: int) -> float:
            return durations(stage, op, micro_batch) * factors.get(stage_rank[stage], 1.0)

        return simulate(orders, slowed, transfer, first_backward=first_backward).seconds

    healthy = seconds({})
    slowest, longest = (0, 0), healthy
    for replica in sorted({replica for replica, _ in slow}):
        factors = {rank: times for (at, rank), times in slow.items() if at == replica}
        took = seconds(factors)
        if took > longest:
            slowest, longest = (replica, max(factors, key=lambda rank: factors[rank])), took
    return Straggling(healthy_seconds=healthy, step_seconds=longest, slowest=slowest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """A run that saves its state now and then and starts from the last save after a failure."""

    mtbf_seconds: float
    """Mean time between failures of the whole cluster."""
    interval_steps: int
    """Steps between two checkpoints that make the run shortest."""
    interval_seconds: float
    young_seconds: float
    """sqrt(2 d M), a first approximation (Young, 1974)."""
    daly_seconds: float
    """An approximation of higher order (Daly, 2006)."""
    goodput: float
    """Share of the time, from 0 to 1, that is spent on steps which last."""
    saving: float
    """Share of the time spent on writing checkpoints which last."""
    step_seconds: float
    """What a step takes on the whole: its own time divided by the goodput."""

    @property
    def lost(self) -> float:
        """Share of the time for work done in vain and for restarts."""
        return max(0.0, 1 - self.goodput - self.saving)


def goodput(
    step_seconds: float,
    devices: int,
    mtbf_hours: float,
    checkpoint_seconds: float,
    restart_seconds: float,
    *,
    per_node: int,
) -> Goodput:
    """The checkpoint interval that makes a run shortest, and what is left of the time then.

    A node fails after `mtbf_hours` in the mean, at any time alike (exponential), also while the run
    saves or restarts; any node's failure stops all. With M the mean time between failures of the
    whole, d the checkpoint's, R the restart's and t the interval's seconds, an interval takes
    M e^(R/M) (e^((t+d)/M) - 1) in the mean (Daly, 2006: exact for such failures).

    UsageError for a time that is negative or a step, a count or an mtbf that is not above 0.
    """
    if not all(0 < one < inf for one in (step_seconds, devices, mtbf_hours, per_node)):
        raise UsageError("step time, devices and mean time between failures must be above 0")
    if not all(0 <= one < inf for one in (checkpoint_seconds, restart_seconds)):
        raise UsageError("the times of a checkpoint and of a restart must be 0 or more")
    mean = mtbf_hours * 3600 / ceil(devices / per_node)
    best = _best_interval(mean, checkpoint_seconds)
    below = max(1, int(best / step_seconds))
    # The share falls on both sides of the best interval, so that one of its neighbours is best.
    steps = max(
        (below, below + 1),
        key=lambda count: _share(count * step_seconds, mean, checkpoint_seconds, restart_seconds),
    )
    interval = steps * step_seconds
    share = _share(interval, mean, checkpoint_seconds, restart_seconds)
    return Goodput(
        mtbf_seconds=mean,
        interval_steps=steps,
        interval_seconds=interval,
        young_seconds=sqrt(2 * checkpoint_seconds * mean),
        daly_seconds=_daly(mean, checkpoint_seconds),
        goodput=share,
        saving=share * checkpoint_seconds / interval,
        step_seconds=step_seconds / share if share else inf,
    )


def _share(interval: float, mean: float, checkpoint: float, restart: float) -> float:
    """Of the time an interval takes in the mean, the part that is work which lasts."""
    if (interval + checkpoint + restart) / mean > 700:  # e^700 is about the largest float
        return 0.0
    return interval / (mean * exp(restart / mean) * expm1((interval + checkpoint) / mean))


def _daly(mean: float, checkpoint: float) -> float:
    """Daly's interval: work between the end of a checkpoint and the start of the next."""
    if checkpoint >= 2 * mean:
        return mean
    ratio = checkpoint / (2 * mean)
    return sqrt(2 * checkpoint * mean) * (1 + sqrt(ratio) / 3 + ratio / 9) - checkpoint


def _best_interval(mean: float, checkpoint: float) -> float:
    """Where the share is largest: -log(1 - x) - x = d/M for x = t/M, by halving."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if _excess(middle) < checkpoint / mean:
            low = middle
        else:
            high = middle
    return low * mean


def _excess(x: float) -> float:
    """-log(1 - x) - x; where the two would cancel, by its series."""
    if x < 0.01:
        return sum(x**power / power for power in range(2, 10))
    return -log1p(-x) - x
