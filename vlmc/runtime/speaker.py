"""One row of a generation: from logits to text, up to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vlmc.runtime.answer import Finish
from vlmc.runtime.sampling import Numbers, Sampling, choose
from vlmc.runtime.stopping import StopWatch
from vlmc.runtime.tokenizer import TextStream, Tokenizer


class Cancel(Protocol):
    """What ends a generation from outside, such as a threading.Event."""

    def is_set(self) -> bool:
        """Whether the caller wants no more."""
        ...


class Speaker:
    """Chooses the tokens of one answer and turns them into text, by itself among the others of a
    batch."""

    def __init__(
        self, tokenizer: Tokenizer, sampling: Sampling, row: int, stops: Sequence[str]
    ) -> None:
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.draw = sampling.draws(row)
        self.stream = TextStream(tokenizer)
        self.watch = StopWatch(stops)
        self.tokens: list[int] = []
        self.last = 0
        """The newest token; the ending one too."""
        self.text = ""
        self.finish: Finish | None = None
        """None while there is more to say."""

    def hear(self, logits: Numbers) -> str:
        """Chooses the next token by logits [vocabulary]; the text that it makes certain."""
        self.last = choose(logits, self.sampling, self.draw)
        if self.last in self.tokenizer.stops:
            return self.end("stop")
        self.tokens.append(self.last)
        said = self.watch.push(self.stream.push(self.last))
        if self.watch.stopped:
            self.finish = "stop"
        self.text += said
        return said

    def end(self, finish: Finish) -> str:
        """Ends the answer; what was still held back."""
        said = self.watch.push(self.stream.finish())
        self.finish = "stop" if self.watch.stopped else finish
        said += self.watch.finish()
        self.text += said
        return said
