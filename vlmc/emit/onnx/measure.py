"""What quantisation costs: quantised graphs beside the plain ones on the same inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.capture.stages import Layout
from vlmc.ir import Arch
from vlmc.runtime.engines.engine import Row
from vlmc.runtime.engines.onnx_engine import OnnxEngine

ROWS = 2
WORDS = 32
STEPS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationError:
    """The difference of logits over a prompt and 16 steps of greedy generation by the plain graphs,
    in standard deviations of the plain logits."""

    mean: float
    largest: float
    agreement: float
    """Share of the tokens that both would choose."""


def measure(arch: Arch, folder: Path, variant: str) -> QuantisationError:
    """Runs the graphs in `folder` and their `variant` on drawn inputs with an image in each row."""
    language = arch.node("language").arguments
    start = language.get("start_token")
    engines = [
        OnnxEngine(
            folder,
            serving=arch.serving,
            start_token=start if isinstance(start, int) else None,
            variant=one,
        )
        for one in (None, variant)
    ]
    draw = np.random.default_rng(0)
    pixels = _pixels(arch, draw)
    prompts = [_row(arch, draw) for _ in range(ROWS)]
    plain, packed = (
        [_with(row, engine.encode_images(pixels)[index]) for index, row in enumerate(prompts)]
        for engine in engines
    )
    if arch.serving == "single_pass":
        wanted, got = engines[0].answer(plain), engines[1].answer(packed)
        return compare(np.concatenate([wanted["logits"]]), np.concatenate([got["logits"]]))
    states: list[Any] = []
    logits: list[NDArray[np.float32]] = []
    for engine, rows in zip(engines, (plain, packed), strict=True):
        state, found = engine.prefill(rows)
        states.append(state)
        logits.append(found.copy())
    pairs = [tuple(logits)]
    room = (engines[0].capacity or 0) - len(prompts[0].ids)
    for _ in range(min(STEPS, room)):
        # Both read what the plain graphs would say, or one other token would be all that is seen.
        tokens = pairs[-1][0].argmax(axis=-1)
        steps = zip(engines, states, strict=True)
        pairs.append(tuple(engine.step(state, tokens).copy() for engine, state in steps))
    return compare(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))


def compare(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> QuantisationError:
    """The error of logits [..., choices]."""
    spread = max(float(wanted.std()), float(np.finfo(np.float32).tiny))
    off = np.abs(got - wanted) / spread
    same = wanted.argmax(axis=-1) == got.argmax(axis=-1)
    return QuantisationError(
        mean=float(off.mean()), largest=float(off.max()), agreement=float(same.mean())
    )


def _pixels(arch: Arch, draw: np.random.Generator) -> NDArray[np.float32]:
    sizes = {"images": ROWS, "frames": 1}
    shape = [sizes.get(dim, 1) if isinstance(dim, str) else dim for dim in Layout(arch).pixels.dims]
    return draw.standard_normal(shape, np.float32)


def _row(arch: Arch, draw: np.random.Generator) -> Row:
    """A prompt of drawn words, with room for one image behind its first token."""
    vocabulary = arch.node("language").arguments["vocabulary"]
    assert isinstance(vocabulary, int)
    within = arch.serving in ("sequence", "encoder_decoder")
    places = arch.tokens.per_image if within else 0
    words = max(2, min(WORDS, arch.tokens.text - STEPS))
    ids = draw.integers(0, vocabulary, words + places)
    visual = np.zeros(len(ids), np.bool_)
    visual[1 : 1 + places] = True
    seen = np.ones((len(ids), 1), np.bool_) if arch.serving == "cross_attention" else None
    return Row(ids=ids, visual=visual, seen=seen)


def _with(row: Row, feature: Any) -> Row:
    return Row(ids=row.ids, visual=row.visual, features=(feature,), seen=row.seen)
