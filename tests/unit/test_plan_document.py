"""plan.yaml: written, read back, edited by hand, and refused where it cannot be meant."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.graph_reports import cluster, flamingo_80b
from vlmc.analysis.report import GraphReport
from vlmc.diagnostics import Diagnostic, SpecError, UsageError
from vlmc.hardware import device
from vlmc.partition.plan import Mesh, ParallelPlan, PlannedStage
from vlmc.partition.request import Request
from vlmc.partition.search import find
from vlmc.planning.checks import against, for_parts
from vlmc.planning.document import load_plan, text_of
from vlmc.runtime.parallel.parts import Part, Parts

HASH = "ab" * 32
HEADED = {"heads": 64, "hidden": 256}
PARTS = Parts(
    name="made",
    spec=HASH,
    parts={
        "encoder": Part(kind="nfnet", arguments={}, parameters=1),
        "adapter": Part(kind="perceiver_resampler", arguments={"heads": 16}, parameters=1),
        "fusion": Part(kind="gated_cross_attention", arguments=HEADED, parameters=1),
        "language": Part(kind="decoder", arguments={**HEADED, "vocabulary": 100}, parameters=1),
        "head": Part(kind="lm", arguments={}, parameters=1),
    },
    image=(3, 8, 8),
    places=64,
    context=512,
)


@pytest.fixture(scope="module")
def report() -> GraphReport:
    return flamingo_80b()


@pytest.fixture(scope="module")
def plan(report: GraphReport) -> ParallelPlan:
    request = Request(mode="train", batch=64, text=512, images=2, tokens=64, spec=HASH,
                      pipeline=4, tensor=4, data=1, zero=0, schedule="1f1b")  # fmt: skip
    return find(report, cluster(device("a100-80gb"), 16), request).plan


@pytest.fixture
def text(plan: ParallelPlan) -> str:
    return text_of(plan)


def faults(text: str, folder: Path, report: GraphReport | None = None) -> list[Diagnostic]:
    path = folder / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        written = load_plan(path)
    except SpecError as error:
        return list(error.diagnostics)
    found = list(against(written.plan, HASH, report))
    return written.diagnostics([*found, *for_parts(written.plan, PARTS)])


def test_a_plan_is_read_back_as_it_was_written(
    plan: ParallelPlan, text: str, tmp_path: Path, report: GraphReport
) -> None:
    assert faults(text, tmp_path, report) == []
    again = load_plan(tmp_path / "plan.yaml").plan
    assert text_of(again) == text
    assert again.model_copy(update={"predicted": None, "bound_seconds": None}) == plan.model_copy(
        update={"predicted": None, "bound_seconds": None}
    )
    assert again.predicted is not None
    assert plan.predicted is not None
    assert again.predicted.memory == plan.predicted.memory
    assert again.predicted.step_seconds == pytest.approx(plan.predicted.step_seconds, rel=1e-5)
    assert max(map(len, text.splitlines())) <= 200


def test_a_range_of_blocks_is_one_line(text: str) -> None:
    assert "  - {block: encoder.stages.2.*, first: 0, last: " in text
    assert "mesh: {pipeline: 4, data: 1, tensor: 4}" in text


def edit(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "code", "help_"),
    [
        ("data: 1, tensor: 4", "data: 3, tensor: 4", "VLMC161", "data: 1"),
        ("count: 16", "count: 12", "VLMC161", "per_node: 6"),
        ("per_node: 8", "per_node: 6", "VLMC161", "per_node: 4"),
        ("chunks: 1", "chunks: 2", "VLMC161", "chunks: 1"),
        ("- group: 1", "- group: 2", "VLMC161", "group: 1"),
        ("batch: 64", "bach: 64", "VLMC010", "batch: 64"),
        ("zero: 0", "zero: 4", "VLMC011", None),
        ("zero: 0", "zero: true", "VLMC011", "zero: 1"),
        ("zero: 0", "zero: 1.0", "VLMC011", "zero: 1"),
        ("batch: 64", "batch: true", "VLMC011", "batch: 1"),
        ("version: 1", "version: 2", "VLMC017", "version: 1"),
        ("version: 1", "version: true", "VLMC017", "version: 1"),
        ("version: 1", "version: 1.0", "VLMC017", "version: 1"),
        ("optimiser: adamw", "optimiser: adamm", "VLMC012", "optimiser: adamw"),
        ("optimiser: adamw", "optimiser: lion", "VLMC012", "optimiser: adamw"),
        ("precision: bf16", "precision: fp16", "VLMC012", "precision: bf16"),
        ("data: 1, tensor: 4", "data: 4, tensor: 1", "VLMC012", "sequence_parallel: false"),
        ("encoder: {pipeline: 1, data: 4, tensor: 1}", "encoder: {pipeline: 2, data: 2, tensor: 4}",
         "VLMC161", "encoder: {pipeline: 1, data: 4, tensor: 1}"),
        ("encoder.stages.0, first: 0, last: 0", "encoder.stages.0, first: 1, last: 0", "VLMC162",
         "last: 1"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_named(
    old: str, new: str, code: str, help_: str | None, text: str, tmp_path: Path
) -> None:
    found = faults(edit(text, old, new), tmp_path)
    assert code in [one.code for one in found], found
    assert help_ in [one.help for one in found if one.code == code]
    assert all(one.expected and one.span.line >= 1 for one in found)


@pytest.mark.parametrize(
    ("changes", "code", "help_"),
    [
        ({"trained": ()}, "VLMC012", "trained: [adapter]"),
        ({"trained": ("adapter", "fusion", "adapter")}, "VLMC012", "trained: [adapter, fusion]"),
        ({"checkpointing": {"head": "full"}}, "VLMC012", "head: none"),
        ({"zero": 3, "schedule": "interleaved"}, "VLMC012", "zero: 2"),
        ({"zero": 3, "schedule": "zero_bubble"}, "VLMC012", "zero: 1"),
        ({"zero": 2, "schedule": "zero_bubble"}, "VLMC012", "zero: 1"),
        (
            {"sequence_parallel": True, "schedule": "zero_bubble"},
            "VLMC012",
            "sequence_parallel: false",
        ),
    ],
)
def test_what_train_py_cannot_run_is_named(
    changes: dict[str, Any], code: str, help_: str, plan: ParallelPlan, tmp_path: Path
) -> None:
    changes = {"sequence_parallel": False, **changes}
    (found,) = faults(text_of(plan.model_copy(update=changes)), tmp_path)
    assert (found.code, found.help) == (code, help_)


def test_one_group_holds_one_stage(plan: ParallelPlan, tmp_path: Path) -> None:
    whole = tuple(held for stage in plan.stages for held in stage.holds)
    stages = (PlannedStage(group=0, holds=whole), PlannedStage(group=0, holds=()))
    changes = {"mesh": Mesh(pipeline=1, data=1, tensor=16), "placement": "stage_0"}
    looped = {"schedule": "interleaved", "chunks": 2, "encoder": None, "stages": stages}
    found = faults(text_of(plan.model_copy(update={**changes, **looped})), tmp_path)
    assert ("VLMC161", "chunks: 1") in [(one.code, one.help) for one in found]


def test_a_stage_holds_something(plan: ParallelPlan, text: str, tmp_path: Path) -> None:
    empty = plan.stages[-1].model_copy(update={"holds": ()})
    stages = (*plan.stages[:-1], empty)
    (found,) = faults(text_of(plan.model_copy(update={"stages": stages})), tmp_path)
    assert (found.code, found.message) == ("VLMC162", "stage 3 holds nothing")


def test_micro_batches_divide_the_batch(plan: ParallelPlan, text: str, tmp_path: Path) -> None:
    old = f"micro_batch: {plan.micro_batch}\n"
    (found,) = faults(edit(text, old, "micro_batch: 5\n"), tmp_path)
    assert (found.code, found.got) == ("VLMC163", "64 / (1 x 5) = 12 remainder 4")
    assert found.help == "micro_batch: 4"
    few = edit(text, old, "micro_batch: 32\n")
    few = edit(few, f"schedule: {plan.schedule}", "schedule: 1f1b")
    (found,) = faults(few, tmp_path)
    assert (found.code, found.help) == ("VLMC163", "schedule: gpipe")
    assert "as many micro-batches" in (found.got or "")


def layers(plan: ParallelPlan, text: str) -> tuple[str, int]:
    """A line that holds several language layers in the middle of the chain."""
    for line in text.splitlines():
        if "language.layers" in line and "first: 0" not in line:
            first, last = (int(word.strip("}").split(": ")[1]) for word in line.split(", ")[1:])
            if last > first:
                return line, first
    raise AssertionError(text)


def test_each_block_is_held_once(
    plan: ParallelPlan, text: str, tmp_path: Path, report: GraphReport
) -> None:
    line, first = layers(plan, text)
    (found, *_) = faults(edit(text, line, line.replace(f"first: {first}", f"first: {first + 1}")),
                         tmp_path)  # fmt: skip
    assert (found.code, found.got, found.help) == (
        "VLMC162", f"nothing holds block {first}", f"first: {first}",
    )  # fmt: skip
    assert line.strip() in found.span.text.strip() or "first" in found.span.text
    (found, *_) = faults(edit(text, line, line.replace(f"first: {first}", f"first: {first - 1}")),
                         tmp_path)  # fmt: skip
    assert (found.code, found.got) == ("VLMC162", f"block {first - 1} again")


def test_a_plan_is_held_to_its_design(text: str, tmp_path: Path, report: GraphReport) -> None:
    (found,) = faults(edit(text, "last: 79", "last: 78"), tmp_path, report)
    assert (found.code, found.got, found.help) == ("VLMC162", "nothing holds block 79", "last: 79")
    (found,) = faults(edit(text, "last: 79", "last: 10000000000000"), tmp_path, report)
    assert (found.code, found.help) == ("VLMC162", "last: 79")
    (found,) = faults(edit(text, "[adapter, fusion]", "[adapter, select]"), tmp_path, report)
    assert (found.code, found.path) == ("VLMC162", ("trained", 1))
    assert found.message == "the design's select has no parameters to train"
    several = edit(text, "block: head, first: 0, last: 0", "block: head, first: 0, last: 5")
    (found,) = faults(several, tmp_path, report)
    assert (found.code, found.help) == ("VLMC162", "last: 0")
    found = faults(text.replace("language.norm", "language.nrom"), tmp_path, report)
    assert next(one.help for one in found) == "block: language.norm"
    (found,) = faults(edit(text, "  - {block: head, first: 0, last: 0}\n", ""), tmp_path, report)
    assert found.message == "no stage holds head"
    assert found.help == "add {block: head, first: 0, last: 0} to a stage"
    checkpointed = edit(text, "checkpointing:", "checkpointing: {language.layer.*: full}\nx:")
    found = faults(checkpointed, tmp_path, report)
    assert {one.code for one in found} == {"VLMC010"}


def test_stages_follow_the_chain(
    plan: ParallelPlan, text: str, tmp_path: Path, report: GraphReport
) -> None:
    head = "  - {block: head, first: 0, last: 0}\n"
    moved = edit(text, head, "")
    moved = edit(moved, "- group: 0\n  holds:\n", "- group: 0\n  holds:\n" + head)
    (found,) = faults(moved, tmp_path, report)
    assert found.code == "VLMC162"
    assert found.message == "stage 1 holds what runs before stage 0"


def test_a_tensor_degree_divides_what_it_splits(tmp_path: Path, report: GraphReport) -> None:
    request = Request(mode="train", batch=6, text=512, images=2, tokens=64, spec=HASH)
    plan = find(report, cluster(device("a100-80gb"), 8), request).plan
    odd = plan.model_copy(
        update={
            "mesh": plan.mesh.model_copy(update={"pipeline": 1, "data": 1, "tensor": 3}),
            "count": 3, "batch": 6, "micro_batch": 1, "chunks": 1, "placement": "stage_0",
            "encoder": None,
            "stages": (plan.stages[0].model_copy(
                update={"holds": tuple(h for s in plan.stages for h in s.holds), "group": 0}),),
        }
    )  # fmt: skip
    found = faults(text_of(odd), tmp_path, report)
    assert [(one.code, one.got, one.help) for one in found] == [
        ("VLMC161", "16 / 3 = 5 remainder 1", "tensor: 2")
    ]


@pytest.mark.parametrize(
    ("words", "tensor", "help_"),
    [
        (32001, 16, None),  # of 2001, one 1986
        (5, 4, "tensor: 5"),  # of 2, and nothing is left for the last
        (5, 8, "tensor: 5"),
    ],
)
def test_words_need_not_come_out_even_but_for_each(
    words: int, tensor: int, help_: str | None, plan: ParallelPlan
) -> None:
    language = Part(kind="decoder", arguments={**HEADED, "vocabulary": words}, parameters=1)
    given = replace(PARTS, parts={**PARTS.parts, "language": language})
    mesh = Mesh(pipeline=1, data=1, tensor=tensor)
    found = list(for_parts(plan.model_copy(update={"mesh": mesh}), given))
    assert [(one.code, one.help) for one in found] == ([("VLMC161", help_)] if help_ else [])
    head = Part(kind="lm", arguments={"tied": True}, parameters=0)
    tied = replace(given, parts={**given.parts, "head": head})
    assert not list(for_parts(plan.model_copy(update={"mesh": mesh}), tied))


def test_a_plan_of_another_design_is_refused(
    text: str, tmp_path: Path, report: GraphReport
) -> None:
    (found,) = faults(edit(text, HASH, "cd" * 32), tmp_path, report)
    assert found.code == "VLMC160"
    assert found.path == ("spec",)
    assert HASH[:12] in (found.expected or "")


@pytest.mark.parametrize("text", ["", "- 1", "3", "version: 1", "a: [", "stages: 3\nversion: 1"])
def test_what_is_no_plan_is_answered(text: str, tmp_path: Path) -> None:
    found = faults(text, tmp_path)
    assert found
    assert all(one.code.startswith("VLMC0") for one in found)


def test_no_file_is_a_mistake_of_the_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_plan(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("fusion", "sizes", "refused"),
    [
        ("placeholder", (64, 7), []),
        ("placeholder", (65, 7), [("text",)]),
        ("placeholder", (1, 8), [("images",)]),
        ("query_prefix", (1, 8), [("images",)]),
        ("single_stream", (512, 8), []),
        ("single_stream", (513, 8), [("text",)]),
        ("gated_cross_attention", (512, 511), []),
        ("gated_cross_attention", (511, 511), [("text",)]),
        ("gated_cross_attention", (512, 512), [("images",)]),
    ],
)
def test_sequences_are_refused_that_the_model_has_no_positions_for(
    plan: ParallelPlan, fusion: str, sizes: tuple[int, int], refused: list[tuple[str]]
) -> None:
    parts = replace(
        PARTS, parts={**PARTS.parts, "fusion": Part(kind=fusion, arguments={}, parameters=1)}
    )
    sized = {"text": sizes[0], "images": sizes[1], "mesh": Mesh(pipeline=4, data=1, tensor=1)}
    for mode in ("train", "serve"):
        given = plan.model_copy(update={**sized, "mode": mode})
        assert [one.path for one in for_parts(given, parts)] == refused
