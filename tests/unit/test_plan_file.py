"""A plan edited by hand is checked before it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from vlmc.diagnostics import UsageError
from vlmc.partition.plan import ParallelPlan
from vlmc.runtime.parallel.chain import Step, unit, whole
from vlmc.runtime.parallel.parts import Part, Parts
from vlmc.runtime.parallel.plan_file import Plan, check_plan, read_plan
from vlmc.runtime.parallel.ruled import Held
from vlmc.runtime.parallel.stage import cuts

ONE = {"pipeline": 1, "data": 1, "tensor": 1}
WHOLE = [{"block": "language.layers.*", "first": 0, "last": 3}]
HEAD = {"block": "head", "first": 0, "last": 0}
LANGUAGE = {"heads": 8, "kv_heads": 2, "hidden": 64}
PARTS = Parts(
    name="made",
    spec="0" * 64,
    parts={
        "encoder": Part(kind="vit", arguments={"heads": 4, "hidden": 64}, parameters=1),
        "language": Part(kind="decoder", arguments=LANGUAGE, parameters=1),
        "fusion": Part(kind="placeholder", arguments={}, parameters=0),
    },
    image=(3, 8, 8),
    places=4,
    context=64,
)


COPIES = {
    "mesh": {"pipeline": 2, "data": 1, "tensor": 4}, "count": 8, "placement": "replicated",
}  # fmt: skip


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
    assert plan.stages[1][0].final == "language.layers.3"
    check_plan(plan, PARTS, 4)
    assert (plan.shares, read(tmp_path, sequence_parallel=True).shares) == (1, 2)


def test_copies_of_an_encoder_have_a_degree_of_their_own(tmp_path: Path) -> None:
    degrees = {"pipeline": 1, "data": 2, "tensor": 2}
    assert read(tmp_path, **COPIES, encoder=degrees).encoder_tensor == 2
    assert read(tmp_path, **COPIES).encoder_tensor == 1
    assert read(tmp_path).encoder_tensor == 2  # the language model's


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
        ({"version": True}, "version must be a whole number"),
        ({"version": 1.0}, "version must be a whole number"),
        ({"mode": "serve"}, "not trained with"),
        ({"precision": "fp16"}, "cannot be .fp16. in training"),
        ({"trained": []}, "nothing would be learnt"),
        ({"trained": ["language", "language"]}, "names a part twice; expected each role once"),
        ({"trained": ["vision"]}, "trained must list roles"),
        ({"schedule": "pipedream"}, "schedule must be one of"),
        ({"batch": "8"}, "batch must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"batch": 7}, "micro-batches of 2 do not divide the batch"),
        ({"batch": 2}, "needs as many micro-batches"),
        ({"zero": 4}, "`zero` cannot be 4"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
        ({"learning_rate": True}, "learning_rate must be a number above 0"),
        ({"epochs": 0}, "epochs must be a whole number from 1 on"),
        ({"zero": "3"}, "zero must be a whole number"),
        ({"zero": True}, "zero must be a whole number"),
        ({"zero": 1.0}, "zero must be a whole number"),
        (
            {"sequence_parallel": True, "mesh": {"pipeline": 2, "data": 2, "tensor": 1}},
            "only the ranks of a tensor group share sequences",
        ),
        ({"sequence_parallel": True, "schedule": "zero_bubble"}, "cannot put gradients off"),
        ({"schedule": "zero_bubble", "chunks": 2}, "one stage to a group"),
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
        (
            {
                "stages": [
                    {"group": 0, "holds": WHOLE},
                    {"group": 1, "holds": [{**HEAD, "last": 7}]},
                ]
            },
            "expected one block.*got from 0 to 7",
        ),
        ({"stages": []}, "stages must list"),
        ({"stages": [{"group": 1, "holds": []}] * 2}, "stage 0 belongs to another group"),
        ({"checkpointing": {"head": "some"}}, "checkpointing must give"),
        ({"checkpointing": {"head": "full"}}, "`head` names no stack"),
        ({"hardware": 5}, "hardware must be text"),
        ({"predicted": [1]}, "predicted must be what"),
        ({"bound_seconds": "abc"}, "bound_seconds must be a number"),
        ({"bound_seconds": float("nan")}, "bound_seconds must be a number"),
        ({"encoder": {"pipeline": 1, "data": 3, "tensor": 1}}, "encoder and adapter cannot have"),
        ({"encoder": {"pipeline": 1, "data": 2, "tensor": 1}}, "encoder and adapter cannot have"),
        (
            {**COPIES, "encoder": {"pipeline": 1, "data": 1, "tensor": 4}},
            "encoder and adapter cannot have.*example encoder: {pipeline: 1, data: 4, tensor: 1}",
        ),
        (
            {**COPIES, "encoder": {"pipeline": 2, "data": 2, "tensor": 2}},
            "encoder and adapter cannot have.*example encoder: {pipeline: 1, data: 2, tensor: 2}",
        ),
        ({**COPIES, "encoder": {"pipeline": 1, "data": 1, "tensor": 3}}, "below 4 that divides it"),
    ],
)
def test_a_field_that_means_nothing_is_named(
    given: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        read(tmp_path, **given)


@pytest.mark.parametrize(
    ("old", "new", "twice"),
    [
        ("spec: ", "zero: 0\nzero: 3\nspec: ", "zero is given twice"),
        ("  data: 1\n", "  data: 1\n  data: 2\n", "data is given twice"),
    ],
)
def test_a_key_given_twice_is_refused(old: str, new: str, twice: str, tmp_path: Path) -> None:
    text = yaml.safe_dump(document())
    assert old in text
    path = tmp_path / "plan.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=twice):
        read_plan(path)


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "\x00", "? [1]\n: 2"])
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
        ({"text": 1_000_000_000}, 4, "text: text and images are .* over .*; for example text: 60"),
        ({"trained": ["select"]}, 4, "design's select has no parameters .* encoder, language, got"),
        (
            {"trained": ["language", "fusion"]},
            4,
            "trained.1: the design's fusion has no parameters",
        ),
        ({"images": 13}, 4, r"16 text \+ 13 images x 4 tokens = 68"),
        ({"images": 17}, 4, "images: .* at most 64 .*; for example images: 15, text: 4"),
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
        (
            {
                "mesh": {"pipeline": 2, "data": 1, "tensor": 6},
                "count": 12,
                "per_node": 12,
                "placement": "replicated",
                "encoder": {"pipeline": 1, "data": 2, "tensor": 3},
            },
            12,
            "encoder.tensor: 3 devices cannot share the 4 heads of the encoder.*example tensor: 2",
        ),
    ],
)
def test_a_plan_of_another_build_is_refused(
    given: dict[str, Any], ranks: int, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        check_plan(read(tmp_path, **given), PARTS, ranks)


def test_numbers_of_blocks_are_compared_and_not_listed() -> None:
    held = Held("language.layers.*", 2, 10**18)
    for path in (
        "language.layers.2",
        "language.layers.999.attention",
        "language.layers",
        "language",
    ):
        assert held.related(path), path
    for path in ("language.layers.1", "language.layers.x", "language.layerz.2", "adapter.layers.2"):
        assert not held.related(path), path
    assert Held("head", 0, 0).related("head.classifier")
    assert not Held("head", 0, 0).related("header")


class Stack(nn.Module):
    """Four layers of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.language = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(1, 1) for _ in range(4))})


def step(number: int) -> Step:
    return unit(f"language.layers.{number}", lambda _model, state, _data: state)


def test_stages_are_cut_by_number(tmp_path: Path) -> None:
    made = cuts([step(n) for n in range(4)], read(tmp_path), Stack())
    assert [[one.name for one in cut.steps] for cut in made] == [
        ["language.layers.0", "language.layers.1"],
        ["language.layers.2", "language.layers.3"],
    ]


VISION = {"block": "encoder.layers.*", "first": 0, "last": 3}


@pytest.mark.parametrize(
    ("holds", "tensor", "refused"),
    [
        (([VISION, *WHOLE], [HEAD]), 2, {"own_group": "language, too, on stage 0"}),
        (([VISION, *WHOLE], [HEAD]), 1, {"own_group": "", "replicated": "a tensor degree of 1"}),
        (([VISION], [*WHOLE, HEAD]), 2, {}),
        (
            ([{**VISION, "last": 1}], [{**VISION, "first": 2}, *WHOLE, HEAD]),
            2,
            {
                "stage_0": "some of them on stage 1",
                "replicated": "some of them on stage 1",
                "own_group": "language, too, on stage 1",
            },
        ),
    ],
)
def test_where_the_encoder_lies_is_said_as_it_is(
    holds: tuple[Any, Any], tensor: int, refused: dict[str, str], tmp_path: Path
) -> None:
    stages = [{"group": n, "holds": one} for n, one in enumerate(holds)]
    mesh = {"pipeline": 2, "data": 1, "tensor": tensor}
    for word in ("stage_0", "own_group", "replicated", "spread"):
        given = {"stages": stages, "mesh": mesh, "count": 2 * tensor, "placement": word}
        if word in refused:
            with pytest.raises(UsageError, match=f"as `{word}` says.*{refused[word]}"):
                read(tmp_path, **given)
        else:
            assert read(tmp_path, **given).placement == word


def test_blocks_behind_the_last_one_are_refused(tmp_path: Path) -> None:
    holds = [
        [{"block": "language.layers.*", "first": first, "last": last}]
        for first, last in ((0, 1), (2, 30_000_000))
    ]
    stages = [{"group": n, "holds": one} for n, one in enumerate(holds)]
    with pytest.raises(UsageError, match=r"stages\[1\]: the model has no language.layers.30000000"):
        cuts([step(n) for n in range(4)], read(tmp_path, stages=stages), Stack())


def test_what_has_parameters_is_held_and_what_has_none_goes_with_its_part(tmp_path: Path) -> None:
    """Flamingo's resampler ends in a step of its own, which has nothing to train."""

    def at(name: str, *owns: str) -> Step:
        return whole(name, lambda _model, state, _data: state, *owns)

    layers = [step(n) for n in range(4)]
    chain = [at("encoder"), at("encoder.end"), at("fusion"), *layers[:2], at("language.turn")]
    made = cuts([*chain, *layers[2:]], read(tmp_path), Stack())
    assert [len(cut.steps) for cut in made] == [6, 2]  # the turn goes with layer 1
    with pytest.raises(UsageError, match=r"stages: no stage holds language\.norm"):
        cuts([*layers, at("language.norm", "language.layers.3")], read(tmp_path), Stack())


def test_checkpointing_names_blocks_that_there_are(tmp_path: Path) -> None:
    steps = [step(n) for n in range(4)]
    within = "language.layers.0.blocks.*"
    named = {"language.layers.*": "full", "language.layers.3": "none", within: "full"}
    assert cuts(steps, read(tmp_path, checkpointing=named), Stack())
    for key in ("language.layerz.*", "language.layers.4", "language"):
        with pytest.raises(UsageError, match=f"checkpointing: the model has no {re.escape(key)}"):
            cuts(steps, read(tmp_path, checkpointing={key: "none"}), Stack())
