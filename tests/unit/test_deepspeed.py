"""deepspeed.json says what the plan says, and nothing that DeepSpeed would pass over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmc.diagnostics import Diagnostic, UsageError
from vlmc.emit.parallel.deepspeed import FILE, faults_beside, text_of
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


def faults(folder: Path, text: str, plan: ParallelPlan, place: str = FILE) -> list[Diagnostic]:
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return faults_beside(folder / "plan.yaml", plan)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("place", [FILE, f"parallel/{FILE}"])
def test_the_file_says_what_the_plan_says(stage: int, place: str, tmp_path: Path) -> None:
    plan = planned(zero=stage, learning_rate=3e-4)
    assert faults(tmp_path, text_of(plan), plan, place) == []
    found = json.loads(text_of(plan))
    sizes = found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"]
    assert found["train_batch_size"] == sizes * plan.mesh.data == 64
    assert found["zero_optimization"]["stage"] == stage
    assert found["bf16"]["enabled"]
    assert found["optimizer"]["params"]["lr"] == 3e-4
    other = plan.model_copy(update={"batch": 32})
    assert {one.code for one in faults(tmp_path, text_of(plan), other, place)} == {"VLMC164"}


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
    ("key", "value", "code", "path"),
    [
        ("train_batch_sise", 64, "VLMC010", "train_batch_sise"),
        ("train_batch_size", "64", "VLMC011", "train_batch_size"),
        ("train_batch_size", True, "VLMC011", "train_batch_size"),
        ("train_batch_size", 0, "VLMC012", "train_batch_size"),
        ("train_batch_size", 128, "VLMC164", "train_batch_size"),
        ("gradient_accumulation_steps", 2, "VLMC164", "gradient_accumulation_steps"),
        ("bf16", {"enabled": "yes"}, "VLMC011", "bf16.enabled"),
        ("bf16", {"enabled": False}, "VLMC164", "bf16.enabled"),
        ("zero_optimization", {"stage": 4}, "VLMC012", "zero_optimization.stage"),
        ("zero_optimization", {"stage": 2.0}, "VLMC011", "zero_optimization.stage"),
        ("zero_optimization", {"stage": 3}, "VLMC164", "zero_optimization.stage"),
        ("zero_optimization", {"stage": 2, "overlap_com": True}, "VLMC010",
         "zero_optimization.overlap_com"),
        ("optimizer", {"type": "Adamw"}, "VLMC012", "optimizer.type"),
        ("optimizer", {"params": {"lr": 1e-3}}, "VLMC164", "optimizer.params.lr"),
    ],
)  # fmt: skip
def test_what_deepspeed_passes_over_is_refused(
    key: str, value: Any, code: str, path: str, tmp_path: Path
) -> None:
    plan = planned(learning_rate=1e-4)
    document = {**json.loads(text_of(plan)), key: value}
    found = [one for one in faults(tmp_path, json.dumps(document, indent="\t"), plan)
             if not path.startswith("optimizer.type") or one.code != "VLMC164"]  # fmt: skip
    (fault,) = found
    assert (fault.code, ".".join(map(str, fault.path))) == (code, path)
    assert f'"{path.rpartition(".")[2]}"' in fault.span.text


@pytest.mark.parametrize(
    ("right", "wrong", "code", "key"),
    [
        ('"stage": 1', '"stage": true', "VLMC011", "stage"),
        ("0.999", "-7", "VLMC012", 1),
        ("0.999", "1", "VLMC012", 1),
    ],
)
def test_a_number_is_one_that_deepspeed_can_train_with(
    right: str, wrong: str, code: str, key: str | int, tmp_path: Path
) -> None:
    plan = planned(zero=1)
    text = text_of(plan)
    assert text.count(right) == 1
    (fault,) = faults(tmp_path, text.replace(right, wrong), plan)
    assert (fault.code, fault.path[-1]) == (code, key)


def test_a_number_that_python_does_not_read_is_answered(tmp_path: Path) -> None:
    text = text_of(planned()).replace(": 64,", f": {'1' * 5000},")
    (fault,) = faults(tmp_path, text, planned())
    assert (fault.code, fault.path) == ("VLMC011", ("train_batch_size",))


def test_a_file_that_is_no_config_is_answered(tmp_path: Path) -> None:
    plan, text = planned(), text_of(planned())
    (fault,) = faults(tmp_path, text.replace("64,", "64"), plan)
    assert (fault.code, fault.span.line) == ("VLMC002", 3)
    (fault,) = faults(tmp_path, text.replace('"AdamW"', "AdamW"), plan)
    assert (fault.code, fault.message) == ("VLMC002", "the file is not JSON")
    (fault,) = faults(tmp_path, text.replace("{", '{"steps_per_print": 5,', 1), plan)
    assert fault.code == "VLMC003"
    assert faults(tmp_path, "[1, 2]", plan)
    assert faults(tmp_path, "{}", plan)
    assert faults_beside(tmp_path / "elsewhere" / "plan.yaml", plan) == []


def test_a_config_beside_a_plan_that_deepspeed_cannot_run_is_refused(tmp_path: Path) -> None:
    text = text_of(planned())
    (fault,) = faults(tmp_path, text, planned(mesh=Mesh(pipeline=2, data=2, tensor=1)))
    assert fault.code == "VLMC164"
    assert "pipeline" in (fault.got or "")
    assert faults(tmp_path, text, planned(mode="serve")) == []
