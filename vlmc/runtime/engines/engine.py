"""The interface of every engine: numbers in, logits out; what a design means is its caller's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmc.diagnostics.faults import UsageError

Pixels = NDArray[np.float32]
Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]
Logits = NDArray[np.float32]

Feature = Any
"""What the vision graph makes of one image, in the engine's own form. It may be kept and used again
by the same engine, in any row, as often as one likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence of a batch."""

    ids: Ids
    """[tokens]; any valid id where a visual token stands."""
    visual: Flags
    """[tokens]: True where visual tokens of `features` stand, in their order."""
    features: tuple[Feature, ...] = ()
    seen: Flags | None = None
    """[tokens, features]: which image a token looks at, where images are looked at from outside
    the sequence."""


def padded(rows: Sequence[Row]) -> tuple[Ids, Ids]:
    """Ids [batch, text], padded on the right, and their mask: 1 where there is a token."""
    longest = max(len(row.ids) for row in rows)
    ids, mask = np.zeros((2, len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = row.ids
        mask[index, : len(row.ids)] = 1
    return ids, mask


def check_rows(name: str, rows: int, most: int | None) -> None:
    """Raises UsageError where the graphs of the engine `name` take fewer rows at once."""
    if most is not None and rows > most:
        raise UsageError(
            f"{rows} prompts at once: the graphs of --engine {name} take {most}; give fewer at a "
            "time"
        )


def check_length(name: str, tokens: int, most: int | None) -> None:
    """Raises UsageError where the graphs of the engine `name` take shorter prompts."""
    if most is not None and tokens > most:
        raise UsageError(
            f"a prompt has {tokens} tokens, images included: the graphs of --engine {name} take "
            f"{most}; --engine eager takes more, and so would a larger token_budget"
        )


class Engine(Protocol):
    """Runs the stages of one design. Holds no state of a generation itself, so that several may go
    on at once, in one thread."""

    name: str
    """As `vlmc run --engine` calls it."""

    @property
    def capacity(self) -> int | None:
        """Tokens that the sequence of one row may have, prompt and answer together (of an
        encoder-decoder: its decoder's); None where only the language model's positions bound it."""
        ...

    def encode_images(self, pixels: Pixels) -> list[Feature]:
        """One feature for each image of [images, channels, height, width], or [images, frames,
        channels, height, width]; of region features [images, regions, channels]."""
        ...

    def prefill(self, rows: Sequence[Row]) -> tuple[Any, Logits]:
        """Reads whole prompts, of unlike lengths as they may be: a state to go on from, and the
        logits [batch, vocabulary] after the last token of each, which the state's next step may
        overwrite. An encoder-decoder's decoder has then read its start token. Raises UsageError
        where a row is longer than the engine's graphs allow."""
        ...

    def step(self, state: Any, tokens: Ids) -> Logits:
        """Appends one token [batch] to each row; the logits [batch, vocabulary] after it, which the
        state's next step may overwrite."""
        ...

    def answer(self, rows: Sequence[Row]) -> dict[str, NDArray[np.float32]]:
        """The outputs, by name, of a design that answers in one pass."""
        ...
