"""What a plan says that its collectives move is what they move: kinds and bytes, counted as
train.py's engine takes a step of the sizes that were planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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
from vlmc.partition.plan import Checkpointing, Collective
from vlmc.partition.request import Request
from vlmc.partition.search import find
from vlmc.partition.setting import Setting
from vlmc.partition.traffic import collectives
from vlmc.partition.writing import write
from vlmc.planning.played import ends_of
from vlmc.planning.played import setting as setting_of
from vlmc.runtime.parallel.batches import Row

TRAINED: dict[str, Any] = {
    "llava-1.5": None,
    "flamingo": None,
    "blip2": ("adapter", "language"),  # whose head reads the embedding
    "visualbert": None,
    "blip2-flan-t5": ("adapter", "language"),
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
SYSTEMS = ("llava-1.5", "flamingo", "blip2", "visualbert")
FEW = ("tensor", "sequence parallel", "ZeRO 3", "1f1b", "interleaved")
CASES = [(system, name) for system in SYSTEMS for name in (PLANS if system in ALL else FEW)]
CUT: dict[str, tuple[Setting, tuple[str, ...]]] = {
    "1f1b": (Setting(pipeline=2, schedule="1f1b"), ("language.layers.0",)),
    "zero bubble": (Setting(pipeline=2, schedule="zero_bubble"), ("language.layers.0",)),
    "interleaved": (
        Setting(pipeline=2, schedule="interleaved", chunks=2),
        ("adapter.begin", "adapter.end", "head"),
    ),
    "interleaved, copies on one rank": (
        Setting(pipeline=2, schedule="interleaved", chunks=2),
        ("language.begin", "language.layers.0", "head"),
    ),
}
"""Stages of blip2 by where the later ones begin: those that read the embedding are two."""
BATCH = 8
RECOMPUTED: tuple[tuple[str, Checkpointing], ...] = tuple(
    (f"{stack}.*", "full") for stack in ("adapter.layers", "gated_blocks", "language.layers")
)
ACROSS: dict[str, tuple[str, tuple[str, ...], Setting]] = {
    "tensor x 1f1b, recomputed": (
        "flamingo",
        ("gated_blocks.0",),
        Setting(pipeline=2, tensor=2, schedule="1f1b", micro_batch=4, keeps=RECOMPUTED),
    ),
    "sequence parallel x 1f1b": (
        "flamingo",
        ("language.layers.0",),
        Setting(pipeline=2, tensor=2, sequence_parallel=True, schedule="1f1b", micro_batch=4),
    ),
    "tensor x zero bubble, tied": (
        "blip2",
        ("adapter.end",),
        Setting(pipeline=2, tensor=2, schedule="zero_bubble", micro_batch=4),
    ),
    "tensor x zero bubble, recomputed": (
        "flamingo",
        ("adapter.layers.0",),
        Setting(pipeline=2, tensor=2, schedule="zero_bubble", micro_batch=4, keeps=RECOMPUTED),
    ),
    "tensor x interleaved, within an adapter": (
        "blip2",
        ("adapter.layers.0", "adapter.end", "language.layers.0"),
        Setting(pipeline=2, tensor=2, schedule="interleaved", chunks=2, micro_batch=4),
    ),
    "ZeRO 0 x 1f1b": (
        "llava-1.5",
        ("language.begin",),
        Setting(pipeline=2, data=2, zero=0, schedule="1f1b", micro_batch=2),
    ),
    "ZeRO 3 x 1f1b, a frozen copy": (
        "flamingo",
        ("language.layers.0",),
        Setting(pipeline=2, data=2, zero=3, schedule="1f1b", micro_batch=2),
    ),
    "ZeRO 1 x zero bubble, a copy": (
        "blip2",
        ("language.layers.0",),
        Setting(pipeline=2, data=2, zero=1, schedule="zero_bubble", micro_batch=2),
    ),
    "ZeRO 2 x interleaved, a copy on the same rank": (
        "blip2",
        ("language.begin", "language.layers.0", "head"),
        Setting(pipeline=2, data=2, zero=2, schedule="interleaved", chunks=2, micro_batch=2),
    ),
    "sequence parallel x ZeRO 1": (
        "flamingo",
        (),
        Setting(data=2, tensor=2, sequence_parallel=True, zero=1, micro_batch=4),
    ),
    "sequence parallel x ZeRO 3, images shared out": (
        "llava-1.5",
        (),
        Setting(
            data=2,
            tensor=2,
            sequence_parallel=True,
            zero=3,
            placement="replicated",
            encoder_tensor=1,
            micro_batch=4,
        ),
    ),
    "tensor x 1f1b, tables of distances": (
        "blip2-flan-t5",
        ("language.decoder_layers.1",),
        Setting(pipeline=2, tensor=2, schedule="1f1b", micro_batch=4),
    ),
    "ZeRO 1 x zero bubble, tables of distances": (
        "blip2-flan-t5",
        ("language.encoder_layers.1",),
        Setting(pipeline=2, data=2, zero=1, schedule="zero_bubble", micro_batch=2),
    ),
}
"""On four ranks: system, where the later stages begin, and the rest of the plan."""


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Document:
    """By name: the plan, bytes by kind and pipeline group as planned, and as moved by each rank."""
    work: dict[int, list[Document]] = {2: [], 4: []}
    planned: Document = {}

    def add(name: str, one: Twin, leaf: Leaf) -> None:
        count = leaf.chain.lines.cluster.count
        groups = range(leaf.chain.setting.pipeline)
        planned[name] = [sums(collectives(leaf, group)) for group in groups]
        work[count].append(piece(name, one, write(leaf, 0.0).model_dump(mode="json")))

    for system, trained in TRAINED.items():
        one = twin(system, tmp_path_factory.mktemp(system))
        report = analyse(one.arch, precision="bf16", trained=trained)
        request = Request(
            mode="train", batch=BATCH, text=text_of(one), images=1, micro_batch=1,
            precision="bf16", spec=one.parts.spec, pipeline=1, data=1, tensor=1,
        )  # fmt: skip
        for of, name in CASES:
            if of == system:
                leaf = found(report, replace(request, **PLANS[name]))
                add(f"{system}: {name}", one, leaf)
        for name, (setting, begins) in CUT.items():
            if system == "blip2":
                whole = replace(setting, micro_batch=1)
                add(f"cut: {name}", one, cut(report, request, whole, begins, 2))
        for name, (of, begins, setting) in ACROSS.items():
            if of == system:
                add(name, one, cut(report, request, setting, begins, 4))
    moved: Document = {}
    for count, pieces in work.items():
        done = run_ranks(count, tmp_path_factory.mktemp(f"ranks{count}"), pieces)
        for one, ranks in zip(pieces, done, strict=True):
            moved[one["name"]] = one["plan"], planned[one["name"]], ranks
    return moved


def sums(found: Iterable[Collective]) -> dict[str, int]:
    """Bytes by kind."""
    sizes: Counter[str] = Counter()
    for one in found:
        sizes[one.kind] += one.bytes
    return {kind: size for kind, size in sizes.items() if size}


def devices(count: int) -> Cluster:
    return Cluster(device=device("l4"), count=count, per_node=8, node_gbps=32, network_gbps=8)


def found(report: GraphReport, request: Request) -> Leaf:
    """What the search finds, with the cuts of its plan."""
    plan = find(report, devices(2), request).plan
    leaf = at(report, request, setting_of(plan), ends_of(plan), 2)
    assert plan.predicted is not None
    busiest = plan.predicted.collectives
    assert busiest == tuple(one for one in collectives(leaf) if one.bytes)
    return leaf


def cut(
    report: GraphReport, request: Request, setting: Setting, begins: tuple[str, ...], count: int
) -> Leaf:
    """The plan with given cuts: before each of these blocks."""
    times = BATCH // (setting.data * setting.micro_batch)
    seen: Counter[str] = Counter()
    names: list[str] = []
    for name in (report.blocks[number].name for number in report.order):
        names.append(name.replace("*", str(seen[name])))
        seen[name] += 1
    ends = (*map(names.index, begins), len(names))
    return at(report, request, replace(setting, micro_batches=times), ends, count)


def at(
    report: GraphReport, request: Request, setting: Setting, ends: tuple[int, ...], count: int
) -> Leaf:
    asked = replace(request, micro_batch=setting.micro_batch)
    chain = Chain(Rooflines(report, devices(count), asked), setting)
    return Leaf(chain, ends, pace(chain, ends))


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
            labels=number if classes else [3] * text_of(one) if parts.target else None,
            images=(torch.randn(parts.still, generator=torch.Generator().manual_seed(number)),),
        )
        for number in range(BATCH)
    ]


def judge(counted: Document, name: str) -> tuple[Document, list[Document]]:
    document, planned, ranks = counted[name]
    compare(planned, ranks)
    return document, ranks


def compare(planned: list[dict[str, int]], ranks: list[Document]) -> None:
    """To the byte, of all ranks of the first replica; the rows of a gradient that do not come out
    even are fewer on others. `planned`: by pipeline group."""
    for one in ranks:
        own = planned[one["group"]]
        if one["replica"] == 0:
            assert one["moved"] == own
        else:
            assert one["moved"] == pytest.approx(own, rel=1e-3)
            assert all(size <= own[kind] for kind, size in one["moved"].items())


@pytest.mark.parametrize(("system", "name"), CASES)
def test_each_collective_moves_what_was_planned(counted: Document, system: str, name: str) -> None:
    judge(counted, f"{system}: {name}")


@pytest.mark.parametrize("name", ACROSS)
def test_what_goes_over_two_axes_is_planned(counted: Document, name: str) -> None:
    judge(counted, name)


@pytest.mark.parametrize("name", CUT)
def test_gradients_of_a_tied_embedding_are_planned(counted: Document, name: str) -> None:
    document, ranks = judge(counted, f"cut: {name}")
    shared = [one for one in document["predicted"]["collectives"] if "embedding" in one["purpose"]]
    if name.endswith("one rank"):
        assert not shared
        assert all(one["moved"]["all_reduce"] == 8 for one in ranks)  # the loss
    else:
        assert [one["group"] for one in shared] == [2]
        sizes = [one["moved"]["all_reduce"] for one in ranks]
        assert sizes == [8 + shared[0]["bytes"]] * 2
        assert sizes[0] > 10_000
