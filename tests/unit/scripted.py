"""An engine that says what it is told, to see what a session makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmc.runtime.engines.engine import Feature, Ids, Logits, Pixels, Row


class ScriptedEngine:
    """Answers each row with its own list of tokens, whatever it is asked."""

    name = "eager"
    capacity: int | None = None

    def __init__(self, vocabulary: int, *scripts: Sequence[int]) -> None:
        self.vocabulary = vocabulary
        self.scripts = scripts
        self.steps = 0
        self.encoded: list[Pixels] = []

    def encode_images(self, pixels: Pixels) -> list[Feature]:
        self.encoded.extend(pixels)
        return [np.zeros((16, 4), np.float32) for _ in pixels]

    def prefill(self, rows: Sequence[Row]) -> tuple[Any, Logits]:
        assert len(rows) == len(self.scripts)
        return [0], self._logits(0)

    def step(self, state: Any, tokens: Ids) -> Logits:
        self.steps += 1
        state[0] += 1
        return self._logits(state[0])

    def answer(self, rows: Sequence[Row]) -> dict[str, Any]:
        raise NotImplementedError

    def _logits(self, turn: int) -> Logits:
        logits = np.zeros((len(self.scripts), self.vocabulary), np.float32)
        for row, script in enumerate(self.scripts):
            logits[row, script[turn] if turn < len(script) else 0] = 1.0
        return logits
