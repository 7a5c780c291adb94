"""Sequences shared out over a tensor group: losses and gradients of one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.distributed.test_parallel_plans import across, everything, judge
from tests.distributed.twins import Document, Twin, plan, rows, run_ranks, twin
from vlmc.analysis.analyse import analyse
from vlmc.hardware import device
from vlmc.hardware.cluster import Cluster
from vlmc.ir import Role
from vlmc.partition.costs import Rooflines
from vlmc.partition.request import Request
from vlmc.runtime.parallel.batches import micro_batches

SYSTEMS = ("llava-1.5", "flamingo", "blip2", "blip2-flan-t5", "visualbert")
STACKS = ("language.layers.*", "gated_blocks.*", "language.encoder_layers.*",
          "language.decoder_layers.*")  # fmt: skip
TRAINED: tuple[tuple[Role, ...], ...] = (("adapter",), ("adapter", "language", "head"))
TWO, FOUR = {"tensor": 2}, {"pipeline": 2, "tensor": 2}
Made = Callable[[Twin], Document]


def shared(made: Twin, cut: tuple[str, ...] = (), **given: object) -> Document:
    """A plan in which all is trained, and tokens are shared out."""
    common = {"sequence_parallel": True, "trained": everything(made), "micro_batch": 4}
    return plan(made, cut, **{**common, **given})


def recomputed(made: Twin, kept: str) -> Document:
    return shared(made, mesh=TWO, checkpointing=dict.fromkeys(STACKS, kept))


def piped(made: Twin, **given: object) -> Document:
    """With a cut amid shared tokens: what is sent are shares."""
    given = {"micro_batch": 2, "placement": "spread", **given}
    return shared(made, across(made, 1), mesh=FOUR, **given)


PLANS: dict[str, tuple[str, Made]] = {
    **{f"{system}: tensor": (system, lambda t: shared(t, mesh=TWO)) for system in SYSTEMS},
    "frozen, images shared out": (
        "llava-1.5",
        lambda t: shared(t, mesh=TWO, placement="replicated", trained=["encoder", "adapter"]),
    ),
    "recomputed": ("flamingo", lambda t: recomputed(t, "full")),
    "selective": ("llava-1.5", lambda t: recomputed(t, "selective")),
    "1F1B": ("llava-1.5", piped),
    "1F1B, two stacks": ("blip2-flan-t5", piped),
    "ZeRO 3": (
        "flamingo",
        lambda t: shared(t, mesh={"data": 2, "tensor": 2}, zero=3, micro_batch=2),
    ),
}


def odd(made: Twin) -> Twin:
    """With a context that two ranks do not divide, and the longest sequence fills."""
    longest = max(len(row.words) for row in rows(made, 8)) + made.parts.places
    assert longest % 2
    return replace(made, parts=replace(made.parts, context=longest))


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Twin]:
    return {name: twin(name, tmp_path_factory.mktemp(name)) for name in SYSTEMS}


@pytest.fixture(scope="module")
def answers(twins: dict[str, Twin], tmp_path_factory: pytest.TempPathFactory) -> Document:
    uneven = odd(twins["llava-1.5"])
    work = [of(name, twins[system], document) for name, (system, document) in PLANS.items()]
    work.append(of("a length that two ranks do not divide", uneven, PLANS["llava-1.5: tensor"][1]))
    for trained in TRAINED:
        for way in (False, True):
            name, document = saving(trained, shares=way)
            work.append({**of(name, twins["llava-1.5"], document), "do": "saved"})
    found: Document = {}
    for ranks in (2, 4):
        own = [one for one in work if one["plan"]["count"] == ranks]
        folder: Path = tmp_path_factory.mktemp(f"ranks{ranks}")
        found |= zip((w["name"] for w in own), run_ranks(ranks, folder, own), strict=True)
    return found


def saving(trained: tuple[Role, ...], *, shares: bool) -> tuple[str, Made]:
    """The name and plan of a step whose saved bytes are counted."""
    given = {"micro_batch": 8, "trained": list(trained), "sequence_parallel": shares}
    return f"saved: {trained}, {shares}", lambda t: shared(t, mesh=TWO, **given)


def of(name: str, made: Twin, document: Made) -> Document:
    return {
        "do": "compare",
        "name": name,
        "folder": str(made.folder),
        "parts": made.parts,
        "rows": rows(made, 8),
        "plan": document(made),
    }


@pytest.mark.parametrize("name", [*PLANS, "a length that two ranks do not divide"])
def test_shared_sequences_give_what_one_process_gives(answers: Document, name: str) -> None:
    judge(answers[name])


@pytest.mark.parametrize("trained", TRAINED)
def test_what_is_saved_shrinks_as_predicted(
    answers: Document, twins: dict[str, Twin], trained: tuple[Role, ...]
) -> None:
    """Bytes kept for the backward pass: fewer than with whole sequences by what the costs say."""
    one = twins["llava-1.5"]
    (given,) = micro_batches(one.parts, rows(one, 8), data=1, replica=0, size=8, shares=2)
    text = given["input_ids"].shape[1] - one.parts.places
    request = Request(mode="train", batch=8, text=text, images=1, precision="fp32")
    report = analyse(one.arch, trained=trained, precision="fp32")
    devices = Cluster(device=device("l4"), count=2, per_node=8, node_gbps=32, network_gbps=8)
    costs = Rooflines(report, devices, request)
    bytes_of = [
        sum(costs.blocks(8, 2, way, 2)[number].saved[0] for number in report.order)
        for way in (False, True)
    ]
    whole, shares = (answers[saving(trained, shares=way)[0]] for way in (False, True))
    assert whole - shares == pytest.approx(bytes_of[0] - bytes_of[1], rel=0.01)
