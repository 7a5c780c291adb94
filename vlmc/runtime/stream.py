"""An answer while it is made."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, cast

from vlmc.runtime.answer import Answer
from vlmc.runtime.choices import Choice
from vlmc.runtime.rows import Layout
from vlmc.runtime.speaker import Speaker


class Stream:
    """Yields the text of an answer piece by piece; of a batch, pairs of a row's number and its
    piece. Closing it, or leaving its `with` block, ends the generation."""

    def __init__(
        self,
        layouts: Sequence[Layout],
        speakers: Sequence[Speaker],
        *,
        batch: bool,
        prepare_seconds: float,
    ) -> None:
        self.layouts = layouts
        self.speakers = speakers
        self.batch = batch
        self.prepare_seconds = prepare_seconds
        self.choices: dict[int, tuple[Choice, ...]] = {}
        self.seconds = 0.0
        """In which the model ran; what a caller does between two pieces is not counted."""
        self.first_seconds: float | None = None
        self.pieces: Iterator[tuple[int, str]] = iter(())

    def begin(self, pieces: Iterator[tuple[int, str]]) -> None:
        """Takes what it yields from."""
        self.pieces = pieces

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            begun = time.perf_counter()
            try:
                row, piece = next(self.pieces)
            finally:
                self.seconds += time.perf_counter() - begun
            if self.first_seconds is None:
                self.first_seconds = self.seconds
            if piece:
                return (row, piece) if self.batch else piece

    def finished(self) -> Stream:
        """Itself, once the whole answer is made."""
        for _ in self:
            pass
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the generation; `answer` holds what was said so far."""
        cast("Generator[tuple[int, str]]", self.pieces).close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the inputs, before the model runs."""
        return tuple(dict.fromkeys(note for one in self.layouts for note in one.inputs.notes))

    @property
    def answers(self) -> list[Answer]:
        """The answers as far as they are made, one for each prompt."""
        first = self.seconds if self.first_seconds is None else self.first_seconds
        return [
            Answer(
                text=speaker.text,
                tokens=tuple(speaker.tokens),
                choices=self.choices.get(row, ()),
                finish=speaker.finish or "cancelled",
                inputs=layout.inputs,
                prepare_seconds=self.prepare_seconds,
                first_token_seconds=first,
                answer_seconds=self.seconds,
            )
            for row, (layout, speaker) in enumerate(zip(self.layouts, self.speakers, strict=True))
        ]

    @property
    def answer(self) -> Answer:
        """The answer as far as it is made; of a batch, its first."""
        return self.answers[0]
