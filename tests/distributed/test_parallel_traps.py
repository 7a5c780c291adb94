"""What made such plans fail elsewhere: pytorch#152827, #153484, #159942, PR#171709,
DeepSpeed#7170."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.distributed.twins import Document, Twin, plan, rows, run_ranks, twin
from vlmc.partition.schedule import order

PIPELINE = {"pipeline": 2}
LOOPED = ("encoder.layers.1", "language.layers.1", "language.layers.3")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return twin("llava-1.5", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return twin("flamingo", tmp_path_factory.mktemp("flamingo"))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return twin("visualbert", tmp_path_factory.mktemp("visualbert"))


SCHEDULES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "gpipe": (("language.layers.1",), {}),
    "1f1b": (("language.layers.1",), {}),
    "interleaved": (LOOPED, {"chunks": 2}),
    "zero_bubble": (("language.layers.1",), {}),
}


def work_of(made: Twin, gated: Twin, stream: Twin) -> dict[str, Document]:
    def of(one: Twin, do: str, document: Document, **given: Any) -> Document:
        common = {"do": do, "folder": str(one.folder), "parts": one.parts, "plan": document}
        return {**common, "rows": rows(one, 8), **given}

    sharded = plan(made, mesh={"data": 2}, zero=3, micro_batch=2)
    piped = plan(made, ("language.layers.1",), mesh=PIPELINE, micro_batch=2)
    spread = plan(made, ("encoder.layers.1",), mesh=PIPELINE, micro_batch=2, placement="spread")
    split = plan(made, mesh={"tensor": 2}, micro_batch=4)
    looped = plan(made, LOOPED, mesh=PIPELINE, schedule="interleaved", chunks=2, micro_batch=2)
    across = plan(gated, mesh={"data": 2}, zero=3, micro_batch=2)
    regions = plan(stream, ("language.layers.1",), mesh=PIPELINE, micro_batch=2)
    batches = [rows(made, 8, seed=n) for n in range(4)]
    found = {
        # The second replica sees text alone, the first one images in each row.
        "modalities": of(made, "compare", sharded, rows=rows(made, 8, blind=(4, 5, 6, 7))),
        "modalities, gated": of(gated, "compare", across, rows=rows(gated, 8, blind=(4, 5, 6, 7))),
        # As many images in each row of a single stream as in NLVR2, fewer, and none.
        "several images": of(stream, "compare", regions, rows=pairs(stream)),
        # One micro-batch of a pipeline is text alone; then the whole step is.
        "text alone": of(made, "compare", spread, rows=rows(made, 8, blind=(2, 3))),
        "all text": of(made, "compare", spread, rows=rows(made, 8, blind=tuple(range(8)))),
        "lengths": of(made, "lengths", piped, before=rows(made, 8), rows=longer(made)),
        "frozen, split": of(made, "frozen", split),
        "frozen, sharded": of(made, "frozen", sharded),
        "frozen, piped": of(made, "frozen", piped),
        "frozen, gated": of(gated, "frozen", plan(gated, mesh={"tensor": 2}, micro_batch=4)),
        "resume": of(made, "resume", sharded, batches=batches, others=[split, spread, looped]),
    }
    for schedule, (cut, given) in SCHEDULES.items():
        document = plan(made, cut, mesh=PIPELINE, micro_batch=2, schedule=schedule, **given)
        found[schedule] = of(made, "executed", document)
    return found


def longer(made: Twin) -> list[Any]:
    """Sequences longer than those of `rows`."""
    found = rows(made, 8, seed=5)
    found[3].words.extend(range(40, 60))
    return found


def pairs(made: Twin) -> list[Any]:
    """Sequences of two images, but for one of one image and one without."""
    found = rows(made, 8, blind=(3,))
    others = rows(made, 8, seed=5, blind=(3, 4))
    return [
        replace(one, images=one.images + other.images)
        for one, other in zip(found, others, strict=True)
    ]


@pytest.fixture(scope="module")
def answered(
    made: Twin, gated: Twin, stream: Twin, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    work = work_of(made, gated, stream)
    found = run_ranks(2, tmp_path_factory.mktemp("traps"), list(work.values()))
    return dict(zip(work, found, strict=True))


@pytest.mark.parametrize(
    "name", ["modalities", "modalities, gated", "several images", "text alone", "all text"]
)
def test_ranks_and_micro_batches_may_lack_images(answered: dict[str, Any], name: str) -> None:
    answer = answered[name]
    assert answer["loss"] < 1e-6, answer
    assert answer["gradient"] < 1e-5, answer
    assert not answer["extra"], answer


def test_a_pipeline_takes_steps_of_unlike_lengths(answered: dict[str, Any]) -> None:
    assert answered["lengths"]["loss"] < 1e-6


@pytest.mark.parametrize(
    "name", ["frozen, split", "frozen, sharded", "frozen, piped", "frozen, gated"]
)
def test_frozen_parameters_stay_as_they_are(answered: dict[str, Any], name: str) -> None:
    answer = answered[name]
    frozen = ("encoder.", "language.") if "gated" in name else ("encoder.",)
    assert not answer["frozen_state"]
    assert not [one for one in answer["changed"] if one.startswith(frozen)]
    assert not [one for one in answer["kept"] if not one.startswith(frozen)]
    assert any(one.startswith(frozen) for one in answer["kept"])


def test_another_plan_goes_on_from_a_checkpoint(answered: dict[str, Any]) -> None:
    losses, resumed = answered["resume"]["losses"], answered["resume"]["resumed"]
    assert len(set(losses)) == 4
    for one in resumed:
        assert one == pytest.approx(losses[2:], rel=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_is_executed_is_what_the_simulator_plays(
    answered: dict[str, Any], schedule: Any
) -> None:
    chunks = 2 if schedule == "interleaved" else 1
    expected = order(schedule, 2, 4, chunks)
    found = [[tuple(one) for one in rank] for rank in answered[schedule]]
    assert found == [[tuple(one) for one in rank] for rank in expected]
