"""Builds of twins as engines see them, and rows to ask them with."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from vlmc.builder.values import valued
from vlmc.builder.weights import save_weights
from vlmc.emit.backends import model_py
from vlmc.ir import Arch
from vlmc.pipeline import load_spec, resolve
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.engines.engine import Engine, Row

STEPS = 16

CASES = (((1,), (7,)), ((0,), (5,)), ((1, 0, 1), (4, 9, 6)), ((2, 0, 3), (12, 5, 9)))
"""Images and words of each row."""


@dataclass(frozen=True)
class Twin:
    """A twin with noise in every weight, on disk and in memory."""

    arch: Arch
    design: Design
    model: Any
    folder: Path

    @property
    def reference(self) -> EagerEngine:
        return EagerEngine(self.model, self.design)

    def pixels(self, images: int) -> np.ndarray[Any, Any]:
        sizes = {"images": images, "frames": self.design.frames}
        dims = self.arch.node("encoder").inputs[0].type.dims
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in dims]
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)

    def rows(self, engine: Engine, images: tuple[int, ...], words: tuple[int, ...]) -> list[Row]:
        """Rows of random words, their images behind the first word; at most as many images as the
        budget has."""
        draw = np.random.default_rng(1)
        features = engine.encode_images(self.pixels(3)) if any(images) else []
        return [
            self._row(features[: min(count, self.design.max_images)], draw.integers(3, 90, length))
            for count, length in zip(images, words, strict=True)
        ]

    def _row(self, features: list[Any], ids: np.ndarray[Any, Any]) -> Row:
        visual, seen = np.zeros(len(ids), np.bool_), None
        if self.design.serving in ("sequence", "encoder_decoder"):
            count = len(features) * self.design.positions[-1]
            ids = np.insert(ids, 1, np.zeros(count, np.int64))
            visual = np.insert(visual, 1, np.ones(count, np.bool_))
        elif self.design.serving == "cross_attention":
            marks = 1 + 2 * np.arange(len(features))
            place = np.arange(len(ids))[:, None]
            seen = place >= marks
            if not self.design.all_previous:
                seen &= place < np.append(marks[1:], len(ids))
        return Row(ids=ids.astype(np.int64), visual=visual, features=tuple(features), seen=seen)


def twin(root: Path, name: str, folder: Path, noise: float = 0.05) -> Twin:
    """The twin of a spec, its values seeded and then disturbed, so that nothing is 0 or 1."""
    spec = load_spec(root / "specs" / f"{name}.yaml")
    arch = resolve(spec, mini=True)
    torch.manual_seed(0)
    model = valued(arch).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(noise * torch.randn_like(parameter))
    save_weights(model, folder / "weights")
    (folder / "model.py").write_text(model_py.source(arch))
    return Twin(arch, describe(spec.mini(), arch), model, folder)


def generated(engine: Engine, rows: list[Row], steps: int = STEPS) -> Any:
    """Greedy tokens [steps + 1, batch] and the logits that they come from."""
    state, logits = engine.prefill(rows)
    found = [logits.copy()]
    for _ in range(steps):
        found.append(engine.step(state, found[-1].argmax(-1)).copy())
    scores = np.stack(found)
    return scores.argmax(-1), scores


def calls(run: Callable[[], object]) -> Counter[str]:
    """What Python calls while `run` runs, its own functions and those of extensions, by name."""
    found: Counter[str] = Counter()

    def count(frame: FrameType, event: str, called: Any) -> None:
        if event in ("call", "c_call"):
            found[frame.f_code.co_name if event == "call" else called.__name__] += 1

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 gives."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


class Memory(NamedTuple):
    """What malloc says of this process, in bytes."""

    held: int
    """Given out and not got back, or kept for the next who asks."""
    taken: int
    """Taken from the system."""


def memory() -> Memory | None:
    """None where malloc does not say."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = MallInfo
    found = library.mallinfo2()
    return Memory(found.uordblks + found.hblkhd, found.arena + found.hblkhd)


def assert_steps_hold_nothing(engine: Engine, rows: list[Row]) -> None:
    """Ninety steps take nothing from the system and hold less than a tensor's handle each, malloc's
    own caches included; every step answers in the same array."""
    state, _ = engine.prefill(rows)
    tokens = np.full(len(rows), 7, np.int64)
    answer = engine.step(state, tokens)
    found: dict[int, Memory | None] = {}
    for number in range(2, 111):
        assert engine.step(state, tokens) is answer
        if number in (20, 110):
            gc.collect()
            found[number] = memory()
    before, after = found[20], found[110]
    if before is None or after is None:
        pytest.skip("this C library does not say what it holds")
    assert after.held - before.held < 90 * 200
    assert after.taken <= before.taken


def assert_same(ours: Engine, reference: Engine, one: Twin, tolerance: float = 1e-4) -> None:
    """`ours` gives the tokens of `reference` and its logits, over every case."""
    for images, words in CASES:
        if one.design.serving == "single_pass":
            expected = reference.answer(one.rows(reference, images, words))
            found = ours.answer(one.rows(ours, images, words))
            assert expected.keys() == found.keys()
            for name, values in expected.items():
                np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance)
            continue
        tokens, scores = generated(reference, one.rows(reference, images, words))
        own_tokens, own_scores = generated(ours, one.rows(ours, images, words))
        np.testing.assert_allclose(own_scores, scores, atol=tolerance, rtol=tolerance)
        assert (own_tokens == tokens).all(), f"{images}, {words}"
