"""Predicted against tracked: some of the steps of benchmarks/memory_prediction.py, and what plans
say beside what train.py's engine holds: some of those of benchmarks/plan_memory.py."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from benchmark_modules import loaded


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def benchmark(patch: pytest.MonkeyPatch) -> ModuleType:
    return loaded(patch, "memory_prediction")


@pytest.fixture(scope="module")
def plans(patch: pytest.MonkeyPatch, benchmark: ModuleType) -> ModuleType:
    del benchmark  # plan_memory imports it
    return loaded(patch, "plan_memory")


STEPS: list[dict[str, Any]] = [
    {"system": "llava-1.5", "images": 2},
    {"system": "llava-1.5", "layers": 9, "trained": "all", "checkpointing": "full"},
    {"system": "visualbert", "layers": 8, "text": 96, "trained": "all"},
    {"system": "visualbert", "layers": 7, "checkpointing": "selective", "precision": "bf16"},
    {"system": "idefics-9b", "layers": 7, "trained": "spec", "checkpointing": "full"},
    {"system": "blip2", "layers": 6, "trained": "adapter"},
    {"system": "blip2-flan-t5", "trained": "all"},
    {"system": "flamingo-3b", "images": 2},
    {"system": "visualbert", "layers": 4, "trained": "all", "zero": 2},
    {"system": "visualbert", "layers": 5, "text": 64, "zero": 3},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step['system']}-{len(step)}")
def test_peak_memory_and_flops_are_as_torch_tracks_them(
    benchmark: ModuleType, step: dict[str, Any]
) -> None:
    result = benchmark.run(benchmark.Case(**step))
    print(result)
    assert result.flops == result.counted
    assert abs(result.error) <= benchmark.MEDIAN


PLANNED: list[dict[str, Any]] = [
    {"case": {"system": "llava-1.5", "images": 2}},
    {
        "case": {"system": "llava-1.5", "layers": 6, "text": 64, "trained": "all",
                 "precision": "bf16"},
        "data": 2, "zero": 1, "micro_batches": 3,
    },
    {
        "case": {"system": "flamingo-3b", "layers": 6, "text": 64, "precision": "bf16"},
        "data": 2, "zero": 3,
    },
    {
        "case": {"system": "visualbert", "layers": 9, "trained": "all", "checkpointing": "full"},
        "data": 2, "zero": 2,
    },
    # What stands beside the stacks is gathered again as the backward pass begins.
    {"case": {"system": "visualbert", "layers": 4, "text": 40, "images": 2}, "data": 2, "zero": 3},
    {"case": {"system": "blip2", "layers": 4, "text": 40, "images": 2}, "data": 2, "zero": 3},
    # Distances between tokens are not of each row.
    {
        "case": {"system": "flamingo-9b", "layers": 7, "batch": 3, "text": 64, "trained": "adapter",
                 "precision": "bf16"},
    },
    {
        "case": {"system": "llava-1.5", "layers": 8, "text": 64, "trained": "all",
                 "precision": "bf16"},
        "micro_batches": 4, "schedule": "interleaved", "rank": 1,
    },
    # There is room for the messages of each micro-batch.
    {
        "case": {"system": "visualbert", "layers": 8, "text": 64, "trained": "all",
                 "checkpointing": "full"},
        "micro_batches": 4, "schedule": "interleaved", "rank": 1,
    },
    # Two copies of the encoder in a tensor group, each over two ranks.
    {
        "case": {"system": "llava-1.5", "layers": 6, "text": 64, "trained": "all",
                 "precision": "bf16", "batch": 4},
        "tensor": 4, "encoder": 2, "micro_batches": 2,
    },
    # What gradients of weights that are put off are made of waits for them.
    {
        "case": {"system": "llava-1.5", "layers": 8, "text": 64, "trained": "all"},
        "micro_batches": 4, "schedule": "zero_bubble", "rank": 1,
    },
    {
        "case": {"system": "llava-1.5", "layers": 8, "text": 64, "trained": "all",
                 "checkpointing": "full"},
        "micro_batches": 4, "schedule": "zero_bubble", "rank": 1,
    },
]  # fmt: skip


@pytest.mark.parametrize("step", PLANNED, ids=str)
def test_a_plan_says_what_train_py_holds(
    plans: ModuleType, benchmark: ModuleType, step: dict[str, Any]
) -> None:
    case = benchmark.Case(**step["case"])
    result = plans.run(plans.Step(**{**step, "case": case}))
    print(result)
    assert abs(result.error) <= benchmark.MEDIAN
