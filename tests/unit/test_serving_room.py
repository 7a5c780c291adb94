"""What images take leaves the KV cache its room: a worst case that is reserved for vision starves
it elsewhere (vllm#20123, vllm#18550)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graph_reports import cluster, flamingo_80b

from vlmc.hardware.cluster import Cluster
from vlmc.hardware.device import device
from vlmc.partition.plan import Memory, ParallelPlan, Predicted
from vlmc.partition.request import Infeasible, Request
from vlmc.partition.search import find
from vlmc.partition.solve import solve_budget

FIXED: dict[str, Any] = {"pipeline": 1, "data": 1, "tensor": 8, "placement": "stage_0"}
SERVE = Request(mode="serve", batch=64, text=640, images=5, tokens=64, micro_batch=1, **FIXED)
REPORTS = {"report": flamingo_80b("prefill"), "decode": flamingo_80b("decode")}


def devices(gigabytes: float | None = None) -> Cluster:
    """Eight of them, of as much memory as is told."""
    card = device("a100-80gb")
    if gigabytes is not None:
        card = card.model_copy(update={"memory_gb": gigabytes})
    return cluster(card, 8)


def planned(asked: Request, gigabytes: float | None = None) -> tuple[ParallelPlan, Memory]:
    plan = find(cluster=devices(gigabytes), request=asked, **REPORTS).plan
    assert plan.predicted is not None
    (memory,) = plan.predicted.memory
    return plan, memory


def told(plan: ParallelPlan) -> Predicted:
    assert plan.predicted is not None
    return plan.predicted


def test_vision_takes_what_the_images_asked_for_take() -> None:
    one, few = planned(replace(SERVE, images=1))
    many, all_five = planned(SERVE)
    assert all_five.vision == pytest.approx(5 * few.vision, rel=1e-6)
    assert all_five.cache == few.cache
    more, less = told(one).largest_batch, told(many).largest_batch
    assert more is not None
    assert less is not None
    assert more > less


def test_images_are_encoded_with_their_micro_batch() -> None:
    """Of a batch, caches lie beside each other; of vision, there is one micro-batch at a time."""
    _, half = planned(replace(SERVE, batch=32))
    _, whole = planned(SERVE)
    assert (whole.vision, whole.activations) == (half.vision, half.activations)
    assert whole.cache == pytest.approx(2 * half.cache, rel=1e-6)


def test_prompts_are_read_in_turns_where_all_images_at_once_would_starve_the_cache() -> None:
    at_once = replace(SERVE, micro_batch=SERVE.batch)
    _, together = planned(at_once)
    _, in_turn = planned(SERVE)
    room = (together.total + in_turn.total) / 2e9
    with pytest.raises(Infeasible, match="Memory"):
        planned(at_once, room)
    plan, memory = planned(replace(SERVE, micro_batch=None), room)
    assert plan.micro_batch < SERVE.batch
    assert memory.cache == in_turn.cache
    assert memory.total <= room * 1e9


def test_the_most_images_leave_the_whole_cache_its_room() -> None:
    """One more image would not do, and not at the cost of the cache."""
    _, memory = planned(SERVE)
    room = memory.total / 1e9 + 0.2
    solved = solve_budget(cluster=devices(room), request=SERVE, what="images", **REPORTS)
    found = solved.found.plan
    assert solved.value == found.images > SERVE.images
    assert told(found).memory[0].cache == memory.cache
    with pytest.raises(Infeasible, match="Memory"):
        planned(replace(SERVE, images=solved.value + 1), room)
