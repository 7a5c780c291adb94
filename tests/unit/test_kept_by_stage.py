"""Activations by stage and micro-batch in flight, beside the published counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graph_reports import cluster, flamingo_80b

from vlmc.hardware.device import device
from vlmc.partition.request import Request
from vlmc.partition.search import find

GROUPS, BATCHES = 4, 16
TRAIN = Request(
    mode="train", batch=BATCHES, text=512, images=5, tokens=64, pipeline=GROUPS, data=1, tensor=8,
    micro_batch=1, checkpointing="full",
)  # fmt: skip


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved"])
def test_what_is_in_flight_is_what_the_schedule_holds(schedule: Any) -> None:
    """1F1B: min(m, p - i) micro-batches in stage i (Narayanan et al., 2019); interleaved with v
    chunks, the first group 1 + (p - 1) / (p v) times p of them (2021); GPipe, all."""
    asked = replace(TRAIN, schedule=schedule, chunks=2 if schedule == "interleaved" else 1)
    plan = find(flamingo_80b(), cluster(device("b200"), 8 * GROUPS), asked).plan
    assert plan.predicted is not None
    kept = plan.predicted.kept
    assert len(kept) == len(plan.stages) == GROUPS * plan.chunks
    flights = [one.in_flight for one in kept]
    if schedule == "gpipe":
        assert flights == [BATCHES] * GROUPS
    elif schedule == "1f1b":
        assert flights == [min(BATCHES, GROUPS - stage) for stage in range(GROUPS)]
    else:
        first = GROUPS * (1 + (GROUPS - 1) / (GROUPS * plan.chunks))
        assert sum(flights[::GROUPS]) / plan.chunks == pytest.approx(first)
        assert flights[0] > flights[GROUPS], "the first stage's come last"
    for group, memory in enumerate(plan.predicted.memory):
        own = kept[group::GROUPS]
        together = sum(one.bytes * one.in_flight for one in own)
        assert 0 < together <= memory.activations * (1 + 1e-9) or schedule == "gpipe"
