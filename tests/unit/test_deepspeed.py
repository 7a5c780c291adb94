"""deepspeed.json says what the plan says, and nothing that DeepSpeed would pass over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlmc.diagnostics import UsageError
from vlmc.emit.parallel.deepspeed import check, config_of, text_of
from vlmc.partition.plan import Holding, Mesh, ParallelPlan, PlannedStage


def planned(**given: Any) -> ParallelPlan:
    stage = PlannedStage(group=0, holds=(Holding(block="head", first=0, last=0),))
    whole: dict[str, Any] = {
        "design": "llava",
        "spec": "0" * 64,
        "mode": "train",
        "hardware": "h100-sxm",
        "count": 4,
        "per_node": 8,
        "mesh": Mesh(pipeline=1, data=4, tensor=1),
        "zero": 2,
        "batch": 64,
        "micro_batch": 4,
        "text": 512,
        "images": 1,
        "stages": (stage,),
    }
    return ParallelPlan(**{**whole, **given})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_file_says_what_the_plan_says(stage: int) -> None:
    plan = planned(zero=stage)
    found = check(json.loads(text_of(plan)), plan)
    assert found == config_of(plan)
    assert found.replicas() == 4
    assert (found.gradient_accumulation_steps, found.zero_optimization.stage) == (4, stage)
    assert found.bf16.enabled


def test_the_learning_rate_is_that_of_the_stage() -> None:
    plan = planned(learning_rate=3e-4)
    found = check(json.loads(text_of(plan)), plan)
    assert found.optimizer.params.lr == 3e-4


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"mesh": Mesh(pipeline=2, data=2, tensor=1)}, "pipeline"),
        ({"mesh": Mesh(pipeline=1, data=2, tensor=2)}, "splits tensors"),
        ({"mode": "serve"}, "serves"),
        ({"optimiser": "sgd"}, "sgd"),
        ({"checkpointing": {"language.layers.*": "full"}}, "recomputed"),
    ],
)
def test_other_plans_get_none(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        text_of(planned(**given))


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("train_batch_sise", 64, "train_batch_sise"),
        ("train_batch_size", "64", "train_batch_size"),
        ("train_batch_size", True, "train_batch_size"),
        ("train_batch_size", 63, "no multiple of 16"),
        ("train_batch_size", 128, "but the plan says 64"),
        ("bf16", {"enabled": "yes"}, "bf16.enabled"),
        ("zero_optimization", {"stage": 4}, "zero_optimization.stage"),
        ("zero_optimization", {"stage": 3}, "not the plan's"),
        ("zero_optimization", {"stage": 2, "overlap_com": True}, "overlap_com"),
        ("optimizer", {"type": "Adamw"}, "optimizer.type"),
    ],
)
def test_what_deepspeed_passes_over_is_refused(key: str, value: Any, place: str) -> None:
    plan = planned()
    document = {**json.loads(text_of(plan)), key: value}
    with pytest.raises(UsageError, match=place):
        check(document, plan)
