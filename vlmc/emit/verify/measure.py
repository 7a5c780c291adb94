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


@dataclass(frozen=True, slots=True)
class Errors:
    """How far numbers are from what was expected; infinite where a shape differs or a number is
    not finite."""

    largest: float
    relative: float
    """The largest error relative to the largest expected magnitude."""
    mean: float
    """The mean error relative to the standard deviation of what was expected."""


def trace(engine: Engine, case: Case, answers: Sequence[NDArray[np.int64]] | None) -> Trace:
    """Runs a case. After the prompts each row goes on with `answers`, with its own likeliest tokens
    where there are none."""
    features = [] if case.shape is None else engine.encode_images(case.pixels())
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
    found: Errors,
    tokens: float | None,
) -> Measured:
    return Measured(
        case=case.name,
        graph=graph,
        lengths=case.lengths,
        images=case.images,
        steps=0 if graph == "vision" else case.steps,
        max_abs=found.largest,
        max_relative=found.relative,
        mean_relative=found.mean,
        tokens=tokens,
    )


def errors(pairs: Iterable[tuple[Array, Array]]) -> Errors:
    """The errors over pairs of expected and got numbers."""
    both = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    if any(a.shape != b.shape or not np.isfinite(b).all() for a, b in both):
        return Errors(float("inf"), float("inf"), float("inf"))
    expected = np.concatenate([a.reshape(-1) for a, _ in both])
    off = np.abs(expected - np.concatenate([b.reshape(-1) for _, b in both]))
    if not off.size:
        return Errors(0.0, 0.0, 0.0)
    largest = float(off.max())
    return Errors(
        largest,
        largest / (float(np.abs(expected).max()) or 1.0),
        float(off.mean()) / (float(expected.std()) or 1.0),
    )


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
