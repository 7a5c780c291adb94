"""An encoder that is split over fewer ranks than the language model: a tensor group of four holds
two copies of it, each over two ranks, which share the images out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.distributed.test_moved_as_planned import rows_of, text_of
from tests.distributed.test_parallel_plans import everything, judge
from tests.distributed.twins import Document, Twin, plan, rows, run_ranks, twin
from vlmc.analysis.analyse import analyse
from vlmc.hardware import device
from vlmc.hardware.cluster import Cluster
from vlmc.partition.request import Request
from vlmc.partition.search import find

SYSTEMS = ("llava-1.5", "flamingo")
"""The second's adapter has two heads, and nothing of its encoder can be split."""
Made = Callable[[Twin], Document]


def degrees(made: Twin, encoder: int, **given: Any) -> Document:
    """All is trained, over four ranks; `encoder`: the tensor degree of encoder and adapter."""
    known = {"mesh": {"tensor": 4}, "micro_batch": 4, "trained": everything(made), **given}
    if encoder == 4:
        return plan(made, **known)
    own = {"pipeline": 1, "data": 4 // encoder, "tensor": encoder}
    return plan(made, placement="replicated", encoder=own, **known)


COMPARED: dict[str, Made] = {
    "split over two": lambda t: degrees(t, 2),
    "tokens shared out": lambda t: degrees(t, 2, sequence_parallel=True),
    "fewer images than copies": lambda t: degrees(t, 2, micro_batch=1),
}
RESUMED = {"from two": (2, (4, 1)), "to two": (4, (2,))}
"""The encoder's degree of the plan that saves, and of those that go on."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """By name, what the runs gave, and the plan."""
    work: list[Document] = []
    for system in SYSTEMS:
        one = twin(system, tmp_path_factory.mktemp(system))

        def add(do: str, name: str, document: Document, one: Twin = one, **more: Any) -> None:
            work.append(
                {
                    "do": do,
                    "name": f"{one.arch.name}: {name}",
                    "folder": str(one.folder),
                    "parts": one.parts,
                    "rows": rows(one, 8),
                    "plan": document,
                    **more,
                }
            )

        for name, made in COMPARED.items():
            add("compare", name, made(one))
        add("rounded", "planned", searched(one), rows=rows_of(one))
        batches = [rows(one, 8, seed=seed) for seed in range(4)]
        for name, (first, then) in RESUMED.items():
            others = [degrees(one, degree) for degree in then if system == SYSTEMS[0]]
            if others:
                add("resume", name, degrees(one, first), batches=batches, others=others)
    done = run_ranks(4, tmp_path_factory.mktemp("ranks"), work)
    return {w["name"]: (w["plan"], answer) for w, answer in zip(work, done, strict=True)}


def searched(one: Twin) -> Document:
    """The plan that the search makes for these degrees, in bf16."""
    report = analyse(one.arch, precision="bf16")
    exact = device("l4").model_copy(update={"cuda": False})  # nothing is rounded up
    devices = Cluster(device=exact, count=4, per_node=8, node_gbps=32, network_gbps=8)
    request = Request(
        mode="train", batch=8, text=text_of(one), images=1, micro_batch=4, precision="bf16",
        spec=one.parts.spec, tensor=4, sequence_parallel=False,
    )  # fmt: skip
    return find(report, devices, replace(request, encoder_tensor=2)).plan.model_dump(mode="json")


def name_of(system: str, answers: Document) -> str:
    return next(name for name in answers if name.startswith(system)).split(":")[0]


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("system", SYSTEMS)
def test_copies_of_an_encoder_give_what_one_process_gives(
    answers: Document, system: str, name: str
) -> None:
    judge(answers[f"{name_of(system, answers)}: {name}"][1])


@pytest.mark.parametrize("system", SYSTEMS)
def test_copies_of_an_encoder_move_and_hold_what_was_planned(
    answers: Document, system: str
) -> None:
    name = name_of(system, answers)
    document, answer = answers[f"{name}: planned"]
    assert document["encoder"] == {"pipeline": 1, "data": 2, "tensor": 2}
    assert answer["gradient"] < 1.1 * answer["alone"] + 0.01, answer
    for held in answer["held"]:
        (expected,) = document["predicted"]["memory"]
        for kind in ("weights", "gradients", "optimiser"):
            assert held[kind] == pytest.approx(expected[kind], rel=0.02, abs=2e3), (kind, held)
    planned: Counter[str] = Counter()
    for one in document["predicted"]["collectives"]:
        planned[one["kind"]] += one["bytes"]
    # FSDP2 rounds shards up to whole rows.
    assert answer["held"][0]["moved"] == pytest.approx(planned, rel=1e-3)


@pytest.mark.parametrize("name", RESUMED)
def test_a_checkpoint_goes_from_one_encoder_degree_to_another(answers: Document, name: str) -> None:
    of = next(one for one in answers if one.endswith(f": {name}"))
    losses, resumed = answers[of][1]["losses"], answers[of][1]["resumed"]
    assert len(set(losses)) == 4
    for one in resumed:
        assert one == pytest.approx(losses[2:], rel=1e-5)
