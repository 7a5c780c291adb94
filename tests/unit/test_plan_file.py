"""A plan edited by hand is checked before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from vlmc.diagnostics import UsageError
from vlmc.partition.plan import ParallelPlan
from vlmc.runtime.parallel.parts import Part, Parts
from vlmc.runtime.parallel.plan_file import Plan, check_plan, read_plan

ONE = {"pipeline": 1, "data": 1, "tensor": 1}
WHOLE = [{"block": "language.layers.*", "first": 0, "last": 3}]
LANGUAGE = {"heads": 8, "kv_heads": 2, "hidden": 64}
PARTS = Parts(
    name="made",
    spec="0" * 64,
    parts={
        "encoder": Part(kind="vit", arguments={"heads": 4, "hidden": 64}),
        "language": Part(kind="decoder", arguments=LANGUAGE),
    },
    image=(3, 8, 8),
    places=4,
    context=64,
)


def document(**given: Any) -> dict[str, Any]:
    holds = [{"block": "language.layers.*", "first": 0, "last": 1}]
    later = [{"block": "language.layers.*", "first": 2, "last": 3}]
    return {
        "version": 1,
        "design": "made",
        "spec": "0" * 64,
        "mode": "train",
        "hardware": "l4",
        "count": 4,
        "per_node": 8,
        "trained": ["language"],
        "precision": "fp32",
        "mesh": {"pipeline": 2, "data": 1, "tensor": 2},
        "batch": 8,
        "micro_batch": 2,
        "text": 16,
        "images": 1,
        "stages": [{"group": 0, "holds": holds}, {"group": 1, "holds": later}],
        **given,
    }


def read(folder: Path, **given: Any) -> Plan:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(document(**given)))
    return read_plan(path)


def test_a_plan_is_read(tmp_path: Path) -> None:
    plan = read(tmp_path)
    assert plan.micro_batches == 4
    assert plan.stages[1][0].names == ("language.layers.2", "language.layers.3")
    check_plan(plan, PARTS, 4)
    assert (plan.shares, read(tmp_path, sequence_parallel=True).shares) == (1, 2)


def test_every_field_of_a_plan_is_known(tmp_path: Path) -> None:
    whole = ParallelPlan.model_validate(document()).model_dump(mode="json")
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert read_plan(path) == read(tmp_path)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"zeroo": 1}, "zeroo is no field"),
        ({"version": 2}, "version 1"),
        ({"mode": "serve"}, "not trained with"),
        ({"precision": "fp16"}, "cannot be .fp16. in training"),
        ({"trained": []}, "nothing would be learnt"),
        ({"trained": ["vision"]}, "trained must list roles"),
        ({"schedule": "pipedream"}, "schedule must be one of"),
        ({"batch": "8"}, "batch must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"batch": 7}, "micro-batches of 2 do not divide the batch"),
        ({"batch": 2}, "needs as many micro-batches"),
        ({"zero": 4}, "`zero` cannot be 4"),
        ({"zero": "3"}, "zero must be a whole number"),
        (
            {"sequence_parallel": True, "mesh": {"pipeline": 2, "data": 2, "tensor": 1}},
            "only the ranks of a tensor group share sequences",
        ),
        ({"sequence_parallel": True, "schedule": "zero_bubble"}, "cannot put gradients off"),
        ({"sequence_parallel": 1}, "sequence_parallel is true or false"),
        ({"optimiser": "lion"}, "expected adamw, sgd, got lion"),
        ({"chunks": 2}, "1f1b holds one stage per rank"),
        (
            {"mesh": ONE, "count": 1, "schedule": "interleaved", "chunks": 2},
            "one pipeline group holds the whole model",
        ),
        ({"mesh": {"pipeline": 2, "data": 1}}, "mesh must have"),
        ({"mesh": {"pipeline": 4, "data": 1, "tensor": 1}}, "4 stages are needed"),
        ({"mesh": ONE}, "the mesh has 1 ranks for 4 devices"),
        ({"per_node": 3}, "do not fill nodes of 3"),
        ({"schedule": "zero_bubble", "zero": 3}, "cannot be 3 with zero_bubble"),
        ({"schedule": "interleaved", "zero": 3}, "cannot be 3 with interleaved"),
        ({"schedule": "zero_bubble", "zero": 2}, "cannot be 2 with zero_bubble"),
        ({"stages": [{"group": 0, "holds": WHOLE}, {"group": 1, "holds": []}]}, "holds nothing"),
        ({"stages": [{"group": 0, "holds": WHOLE}, {"group": 1, "holds": WHOLE}]}, "again"),
        ({"stages": []}, "stages must list"),
        ({"stages": [{"group": 1, "holds": []}] * 2}, "stage 0 belongs to another group"),
        ({"checkpointing": {"head": "some"}}, "checkpointing must give"),
        ({"encoder": {"pipeline": 1, "data": 3, "tensor": 1}}, "encoder and adapter cannot have"),
        ({"encoder": {"pipeline": 1, "data": 2, "tensor": 1}}, "encoder and adapter cannot have"),
    ],
)
def test_a_field_that_means_nothing_is_named(
    given: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        read(tmp_path, **given)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00"])
def test_a_file_that_is_no_plan_is_answered(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"plan\.yaml"):
        read_plan(path)
    with pytest.raises(UsageError, match="does not exist"):
        read_plan(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("given", "ranks", "reason"),
    [
        ({"spec": "1" * 64}, 4, "another spec"),
        ({}, 2, "for 4 processes, but there are 2"),
        # Two key/value heads on four devices load elsewhere, and fail in the first step.
        (
            {"mesh": {"pipeline": 2, "data": 1, "tensor": 4}, "count": 8},
            8,
            "4 devices cannot share the 2 key/value heads of the language",
        ),
        (
            {"mesh": {"pipeline": 2, "data": 1, "tensor": 3}, "count": 6, "per_node": 6},
            6,
            "3 devices cannot share the 4 heads of the encoder",
        ),
    ],
)
def test_a_plan_of_another_build_is_refused(
    given: dict[str, Any], ranks: int, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        check_plan(read(tmp_path, **given), PARTS, ranks)
