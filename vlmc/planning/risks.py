"""What a slow device and lost nodes would cost a training plan, on paper."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlmc.diagnostics import UsageError
from vlmc.diagnostics.nearest import listing
from vlmc.ir.training import OPTIMISERS
from vlmc.partition.reliability import Goodput, Straggling, factor, goodput, stragglers
from vlmc.partition.schedule.orders import orders_of
from vlmc.partition.states import MASTER
from vlmc.planning.made import Made
from vlmc.planning.played import pipeline, played

SLOW_PERCENT = 20.0
KINDS = ("stragglers", "failures")
NODE_HOURS = 6300.0
"""Between two failures of one node: 419 unexpected interruptions in 54 days on 16,384 devices,
eight to a node (Dubey et al., 2024, arXiv:2407.21783, section 3.3.4)."""
MOST_HOURS = 1e9
"""Between two failures of one node: beyond, nothing ever fails."""
STORAGE = 1e9
"""Bytes a second that a node writes to storage: 2 TB/s for about 2,000 nodes (the same, 3.3.1)."""
RESTART_SECONDS = 300.0
"""From a failure until work goes on, reading the checkpoint included. Assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Risks:
    """What was simulated."""

    slow_percent: float
    """Of its speed, what the slow device lacks."""
    straggling: tuple[Straggling, ...] | None
    """By pipeline group: one slow device in it."""
    node_hours: float
    checkpoint_bytes: int
    checkpoint_seconds: float
    failures: Goodput | None

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """In sentences."""
        found: list[str] = []
        if self.straggling is not None:
            slowdowns = [one.slowdown for one in self.straggling]
            worst = max(range(len(slowdowns)), key=lambda group: slowdowns[group])
            text = (
                f"One device {self.slow_percent:g}% slow: the step takes {slowdowns[worst]:.3f} "
                f"times as long if it is in pipeline group {worst}"
            )
            best = min(range(len(slowdowns)), key=lambda group: slowdowns[group])
            if slowdowns[best] < slowdowns[worst]:
                text += f", {slowdowns[best]:.3f} in group {best}"
            found.append(text + ".")
        if self.failures is not None:
            one = self.failures
            found += [
                f"A node fails every {_hours(self.node_hours)}, some node every "
                f"{_hours(one.mtbf_seconds / 3600)}.",
                f"A checkpoint of {self.checkpoint_bytes / 1e9:,.1f} GB takes "
                f"{self.checkpoint_seconds:,.1f} s; best every {one.interval_steps:,} steps "
                f"({one.interval_seconds / 60:,.1f} min; Young {one.young_seconds / 60:,.1f}, Daly "
                f"{one.daly_seconds / 60:,.1f}).",
                f"Goodput {one.goodput:.2%}: {one.saving:.2%} of the time saves, {one.lost:.2%} is "
                f"lost; a step takes {one.step_seconds:.4g} s on the whole.",
            ]
        return found


def _hours(value: float) -> str:
    return f"{value:,.0f} h" if value >= 1000 else f"{value:.4g} h"


def kinds(text: str) -> tuple[str, ...]:
    """The simulations that are named. Raises UsageError for an unknown one."""
    words = tuple(word.strip() for word in text.split(","))
    for word in words:
        if word not in KINDS:
            raise UsageError(f"--simulate {word[:60]}: {listing(word, KINDS)} is expected")
    return words


def check_given(slow: float | None, node_hours: float | None) -> None:
    """Raises UsageError for what no device or node is."""
    if slow is not None and not 0 <= slow < 100:
        raise UsageError(f"--slow {slow:g}: a percentage from 0 to below 100 is expected")
    if node_hours is not None and not 0 < node_hours <= MOST_HOURS:
        raise UsageError(
            f"--mtbf-hours {node_hours:g}: hours above 0 are expected, at most {MOST_HOURS:g}"
        )


def simulate_risks(
    made: Made, named: tuple[str, ...], slow: float | None, node_hours: float | None
) -> Risks:
    """Simulates what is named, of a plan that trains. `slow`: percent of its speed that a device
    lacks. Raises UsageError where failures leave no time for a step."""
    plan = made.plan
    slow_percent = SLOW_PERCENT if slow is None else slow
    hours = NODE_HOURS if node_hours is None else node_hours
    longer = factor(slow_percent)
    assert plan.mode == "train"
    assert plan.predicted is not None
    straggling, failures = None, None
    if "stragglers" in named:
        parts, orders = pipeline(made), orders_of(plan, played(plan))
        straggling = tuple(
            stragglers(
                orders,
                parts.durations,
                parts.transfer,
                {(0, group): longer},
                first_backward=parts.first_backward,
            )
            for group in range(plan.mesh.pipeline)
        )
    state = OPTIMISERS[plan.optimiser]
    size = sum(
        one.count * one.parameters * (MASTER + state * one.stepped)
        for one in made.report.blocks
        if one.trained
    )
    nodes = -(-plan.count // plan.per_node)
    saving = size / (STORAGE * nodes)
    if "failures" in named:
        failures = goodput(
            plan.predicted.step_seconds,
            plan.count,
            hours,
            saving,
            RESTART_SECONDS,
            per_node=plan.per_node,
        )
        if failures.goodput == 0:
            raise UsageError(
                f"--mtbf-hours {hours:g}: some node fails every {failures.mtbf_seconds:.3g} s, and "
                f"a step with its checkpoint takes {plan.predicted.step_seconds + saving:.3g} s: "
                "nothing would ever be done"
            )
    return Risks(
        slow_percent=slow_percent,
        straggling=straggling,
        node_hours=hours,
        checkpoint_bytes=size,
        checkpoint_seconds=saving,
        failures=failures,
    )
