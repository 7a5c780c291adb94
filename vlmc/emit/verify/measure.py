"""How far an engine is from eager fp32 on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmc.emit.verify.cases import Case
from vlmc.emit.verify.record import Measured
from vlmc.runtime.engines.engine import Engine

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What an engine made of a case."""

    features: tuple[Array, ...]
    logits: tuple[Array, ...]
    """Of the prompts and of each step, [batch, vocabulary]; or every output of one pass."""

    def tokens(self) -> list[NDArray[np.int64]]:
        """The likeliest token of each row, at each step."""
        return [one.argmax(-1) for one in self.logits]


def trace(engine: Engine, case: Case, answers: Sequence[NDArray[np.int64]] | None) -> Trace:
    """Runs a case. After the prompts each row goes on with `answers`, with its own likeliest tokens
    where there are none."""
    features = [] if case.pixels is None else engine.encode_images(case.pixels)
    rows = [prompt.row(features) for prompt in case.prompts]
    seen = tuple(array for feature in features for array in _arrays(feature))
    if not case.generates:
        found = engine.answer(rows)
        return Trace(features=seen, logits=tuple(found[name] for name in sorted(found)))
    state, logits = engine.prefill(rows)
    made = [np.array(logits)]
    for index in range(case.steps):
        tokens = made[-1].argmax(-1) if answers is None else answers[index]
        made.append(np.array(engine.step(state, tokens.astype(np.int64))))
    return Trace(features=seen, logits=tuple(made))


def compare(case: Case, expected: Trace, got: Trace) -> Iterator[Measured]:
    """The errors of the vision graph, where its features have the form of eager's, and of what
    follows it."""
    shapes = [[one.shape for one in side.features] for side in (expected, got)]
    if shapes[0] and shapes[0] == shapes[1]:
        found = errors(zip(expected.features, got.features, strict=True))
        yield _measured(case, "vision", found, None)
    pairs = list(zip(expected.logits, got.logits, strict=True))
    same = [a.argmax(-1) == b.argmax(-1) for a, b in pairs if a.shape == b.shape]
    agreement = float(np.mean(np.concatenate([one.reshape(-1) for one in same]))) if same else 0.0
    yield _measured(case, "language", errors(pairs), agreement)


def _measured(
    case: Case,
    graph: Literal["vision", "language"],
    found: tuple[float, float],
    tokens: float | None,
) -> Measured:
    return Measured(
        case=case.name,
        graph=graph,
        lengths=case.lengths,
        images=case.images,
        steps=0 if graph == "vision" else case.steps,
        max_abs=found[0],
        max_relative=found[1],
        tokens=tokens,
    )


def errors(pairs: Iterable[tuple[Array, Array]]) -> tuple[float, float]:
    """The largest absolute error over pairs of expected and got, and the same relative to the
    largest expected magnitude. Infinite where a shape differs or a number is not finite."""
    largest = magnitude = 0.0
    for expected, got in pairs:
        if expected.shape != got.shape or not np.isfinite(got).all():
            return float("inf"), float("inf")
        if expected.size:
            largest = max(largest, float(np.abs(expected - got).max()))
            magnitude = max(magnitude, float(np.abs(expected).max()))
    return largest, largest / magnitude if magnitude else largest


def _arrays(feature: Any) -> Iterator[Array]:
    """The numbers of a feature, which is an engine's own: arrays, tensors, or groups of them."""
    if isinstance(feature, dict):
        feature = list(feature.values())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(feature, tuple | list):
        for one in feature:  # pyright: ignore[reportUnknownVariableType]
            yield from _arrays(one)
    elif hasattr(feature, "detach"):
        yield feature.detach().float().cpu().numpy()
    elif isinstance(feature, np.ndarray):
        yield feature.astype(np.float32)
