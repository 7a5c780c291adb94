"""What a plan says that its collectives move is what they move: kinds and bytes, counted as
train.py's engine takes a step of the sizes that were planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.distributed.twins import Document, Twin, run_ranks, twin
from vlmc.analysis.analyse import analyse
from vlmc.analysis.report import GraphReport
from vlmc.hardware import device
from vlmc.hardware.cluster import Cluster
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.leaf import Leaf
from vlmc.partition.pace import pace
from vlmc.partition.request import Request
from vlmc.partition.search import find
from vlmc.partition.setting import Setting
from vlmc.partition.writing import write
from vlmc.runtime.parallel.batches import Row

TRAINED: dict[str, Any] = {
    "llava-1.5": None,
    "flamingo": None,
    "blip2": ("adapter", "language"),  # whose head reads the embedding
    "visualbert": None,
}
SPREAD: dict[str, Any] = {"tensor": 2, "sequence_parallel": False, "placement": "spread"}
PLANS: dict[str, dict[str, Any]] = {
    "tensor": SPREAD,
    "tensor, recomputed": {**SPREAD, "checkpointing": "full"},
    "sequence parallel": {**SPREAD, "sequence_parallel": True},
    "images shared out": {**SPREAD, "placement": "replicated"},
    "ZeRO 0": {"data": 2, "zero": 0},
    "ZeRO 2": {"data": 2, "zero": 2},
    "ZeRO 3": {"data": 2, "zero": 3},
    "1f1b": {"pipeline": 2, "schedule": "1f1b"},
    "interleaved": {"pipeline": 2, "schedule": "interleaved", "chunks": 2},
}
ALL = ("flamingo",)
FEW = ("tensor", "sequence parallel", "ZeRO 3", "1f1b", "interleaved")
CASES = [(system, name) for system in TRAINED for name in (PLANS if system in ALL else FEW)]
CUT: dict[str, tuple[Setting, tuple[str, ...]]] = {
    "1f1b": (Setting(pipeline=2, schedule="1f1b"), ("language.layers.*",)),
    "zero bubble": (Setting(pipeline=2, schedule="zero_bubble"), ("language.layers.*",)),
    "interleaved": (
        Setting(pipeline=2, schedule="interleaved", chunks=2),
        ("adapter.begin", "adapter.end", "head"),
    ),
    "interleaved, copies on one rank": (
        Setting(pipeline=2, schedule="interleaved", chunks=2),
        ("language.begin", "language.layers.*", "head"),
    ),
}
"""Stages of blip2 by where the later ones begin: those that read the embedding are two."""
BATCH = 8


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """By system and name: bytes by kind, as planned and as moved."""
    work: list[Document] = []
    for system, trained in TRAINED.items():
        one = twin(system, tmp_path_factory.mktemp(system))
        report = analyse(one.arch, precision="bf16", trained=trained)
        request = Request(
            mode="train", batch=BATCH, text=text_of(one), images=1, micro_batch=1,
            precision="bf16", spec=one.parts.spec, pipeline=1, data=1, tensor=1,
        )  # fmt: skip
        for of, name in CASES:
            if of == system:
                document = found(report, replace(request, **PLANS[name]))
                work.append(piece(f"{system}: {name}", one, document))
        for name, (setting, begins) in CUT.items():
            if system == "blip2":
                work.append(piece(f"cut: {name}", one, cut(report, request, setting, begins)))
    done = run_ranks(2, tmp_path_factory.mktemp("ranks"), work)
    return {w["name"]: (w["plan"], moved) for w, moved in zip(work, done, strict=True)}


def devices() -> Cluster:
    return Cluster(device=device("l4"), count=2, per_node=8, node_gbps=32, network_gbps=8)


def found(report: GraphReport, request: Request) -> Document:
    return find(report, devices(), request).plan.model_dump(mode="json")


def cut(
    report: GraphReport, request: Request, setting: Setting, begins: tuple[str, ...]
) -> Document:
    """The plan with given cuts: before the first block of each of these names."""
    chain = Chain(
        Rooflines(report, devices(), request), replace(setting, micro_batch=1, micro_batches=BATCH)
    )
    names = [report.blocks[number].name for number in report.order]
    ends = (*map(names.index, begins), chain.length)
    return write(Leaf(chain, ends, pace(chain, ends)), 0.0).model_dump(mode="json")


def piece(name: str, one: Twin, document: Document) -> Document:
    return {
        "do": "moved",
        "name": name,
        "folder": str(one.folder),
        "parts": one.parts,
        "rows": rows_of(one),
        "plan": document,
    }


def text_of(one: Twin) -> int:
    """Words with which a sequence needs no padding: its length is a multiple of 8."""
    beside = one.parts.fusion in ("gated_cross_attention", "single_stream")
    return 16 if beside else 16 + -one.parts.places % 8


def rows_of(one: Twin) -> list[Row]:
    """Sequences of the sizes that are planned, with one still image each."""
    parts = one.parts
    crossing = parts.fusion == "gated_cross_attention"
    classes = parts.parts["head"].arguments.get("classes")
    return [
        Row(
            words=[3 + number] * (text_of(one) - crossing),  # an image has a place for itself
            labels=number if classes else None,
            images=(torch.randn(parts.still, generator=torch.Generator().manual_seed(number)),),
        )
        for number in range(BATCH)
    ]


def judge(counted: Document, name: str) -> dict[str, int]:
    document, moved = counted[name]
    planned: dict[str, int] = {}
    for one in document["predicted"]["collectives"]:
        planned[one["kind"]] = planned.get(one["kind"], 0) + one["bytes"]
    assert set(moved) == set(planned)
    # FSDP2 rounds shards up to whole rows.
    assert moved == pytest.approx(planned, rel=1e-3)
    return moved


@pytest.mark.parametrize(("system", "name"), CASES)
def test_each_collective_moves_what_was_planned(counted: Document, system: str, name: str) -> None:
    judge(counted, f"{system}: {name}")


@pytest.mark.parametrize("name", CUT)
def test_gradients_of_a_tied_embedding_are_planned(counted: Document, name: str) -> None:
    moved = judge(counted, f"cut: {name}")
    document, _ = counted[f"cut: {name}"]
    shared = [one for one in document["predicted"]["collectives"] if "embedding" in one["purpose"]]
    if name.endswith("one rank"):
        assert not shared
        assert moved["all_reduce"] == 8  # the loss
    else:
        assert [one["group"] for one in shared] == [2]
        assert moved["all_reduce"] == 8 + shared[0]["bytes"] > 10_000
