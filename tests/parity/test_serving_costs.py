"""What the planner prices when a design serves is what the eager engine runs: FLOPs by torch's own
counter, bytes and calls by operator, keys and values that stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_cases import Twin, twin
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vlmc.analysis.analyse import analyse
from vlmc.analysis.operators import FUSED, Memory
from vlmc.analysis.report import GraphReport, Mode
from vlmc.runtime.engines.engine import Row

ROOT = Path(__file__).parent.parent.parent
SYSTEMS = ("blip2", "blip2-flan-t5", "flamingo-3b", "idefics-9b", "llava-1.5", "visualbert")
WORDS, ANSWER = 9, 3
BATCHES = ((2, 1), (3, 2))
"""Rows, and images of each."""


class Moved(TorchDispatchMode):
    """Counts calls and bytes of what runs within it, composite operators taken apart."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and "is_contiguous" not in str(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        memory = Memory()  # a new one: it would give what it was given before
        if memory.is_view(func):
            return func(*args, **kwargs)
        out, cost = memory.run(func, args, kwargs)
        if cost is not None:
            self.calls[str(func.overloadpacket)] += 1
            self.bytes[str(func.overloadpacket)] += cost.bytes
        return out


@pytest.fixture(scope="module", params=SYSTEMS)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return twin(ROOT, request.param, tmp_path_factory.mktemp("twin"))


def rows_of(one: Twin, batch: int, images: int) -> list[Row]:
    """Of one length, each with its images in front: of videos one frame."""
    pixels = one.pixels(batch * images)
    features = one.reference.encode_images(pixels[:, 0] if pixels.ndim == 5 else pixels)
    inside = one.design.serving in ("sequence", "encoder_decoder")
    count = one.design.positions[0] * images if inside else 0
    ids = np.full(count + WORDS, 7, np.int64)
    crossing = one.design.serving == "cross_attention"
    return [
        Row(
            ids=ids,
            visual=np.arange(len(ids)) < count,
            features=tuple(features[row * images : (row + 1) * images]),
            seen=np.ones((len(ids), images), np.bool_) if crossing else None,
        )
        for row in range(batch)
    ]


def counted(run: Callable[[], Any]) -> tuple[Any, int, Moved]:
    """What it gives, its FLOPs by torch's counter, and what it moves."""
    moved = Moved()
    with FlopCounterMode(display=False, custom_mapping=dict(FUSED)) as flops, moved:
        made = run()
    return made, flops.get_total_flops(), moved


def check(report: GraphReport, flops: int, moved: Moved, sizes: dict[str, int]) -> None:
    """FLOPs are equal; so are calls and bytes of whatever takes time."""
    blocks = [report.blocks[place] for place in report.order]
    assert sum(block.flops("forward")(**sizes) for block in blocks) == flops
    calls: Counter[str] = Counter()
    moves: Counter[str] = Counter()
    products: set[str] = set()
    for operator in (one for block in blocks for one in block.operators):
        calls[operator.name] += operator.calls
        moves[operator.name] += int(operator.bytes(**sizes))
        products |= {operator.name} if operator.matmul else set()
    assert {name: (calls[name], moves[name]) for name in products} == {
        name: (moved.calls[name], moved.bytes[name]) for name in products
    }
    # Constants and what comes from numpy are left.
    for name in moves | moved.bytes:
        assert abs(moves[name] - moved.bytes[name]) < 1e-3 * moved.bytes.total(), name
    # What the engine does row by row counts once.
    assert abs(calls.total() - moved.calls.total()) < 0.15 * moved.calls.total()


def read(one: Twin, mode: Mode) -> GraphReport:
    return analyse(one.arch, mode=mode, precision="fp32")


@pytest.mark.parametrize(("batch", "images"), BATCHES)
def test_costs_are_those_of_the_engine(one: Twin, batch: int, images: int) -> None:
    engine, design = one.reference, one.design
    sizes = {"batch": batch, "images": images, "tokens": one.arch.tokens.per_image}

    def begin() -> Any:
        rows = rows_of(one, batch, images)
        return engine.prefill(rows) if design.generates else engine.answer(rows)

    made, flops, moved = counted(begin)
    prompts = read(one, "prefill")
    check(prompts, flops, moved, {**sizes, "text": WORDS, "answer": ANSWER})
    if not design.generates:
        return
    state, logits = made
    beside = design.serving == "encoder_decoder"  # its decoder has read its start token
    for _ in range(ANSWER - beside):
        _, flops, moved = counted(lambda: engine.step(state, logits.argmax(-1)))
    whole = {**sizes, "text": WORDS + ANSWER, "answer": ANSWER}
    check(read(one, "decode"), flops, moved, whole)
    pairs = [(layer.keys, layer.values) for layer in state.cache.layers]
    held = sum(one.nbytes for pair in (*pairs, *state.memory) for one in pair)
    assert sum(prompts.blocks[place].cache(**whole) for place in prompts.order) == held
