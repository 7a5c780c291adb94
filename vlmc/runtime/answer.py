"""What a model said, and what it took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from vlmc.runtime.choices import Choice
from vlmc.runtime.rows import Inputs

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one prompt. Times are seconds of wall clock; those of a batch are the whole
    batch's."""

    text: str
    tokens: tuple[int, ...] = ()
    """The generated tokens, without the one that ends the answer."""
    choices: tuple[Choice, ...] = ()
    """What a text encoder chose from, likeliest first."""
    finish: Finish
    """Whether the model ended its answer (or a stop string did), the limit of new tokens did, or
    the caller."""
    inputs: Inputs
    prepare_seconds: float
    first_token_seconds: float
    """From the start of the model's run to its first token: vision and the whole prompt."""
    answer_seconds: float

    def __str__(self) -> str:
        return self.text

    def tokens_per_second(self) -> float | None:
        """Tokens after the first, by the time that they took; None for an answer of one token."""
        later = self.answer_seconds - self.first_token_seconds
        return (len(self.tokens) - 1) / later if len(self.tokens) > 1 and later > 0 else None

    def summary(self) -> str:
        """One line about what it took."""
        speed = self.tokens_per_second()
        visual = f" + {self.inputs.visual} visual" if self.inputs.visual else ""
        read = f"{self.inputs.text}{visual} tokens in"
        if self.choices:
            return f"[{read}; {self.answer_seconds:.2f} s]"
        rate = "" if speed is None else f", then {speed:,.1f} tokens/s"
        first = f"first after {self.first_token_seconds:.2f} s{rate}"
        return f"[{read}, {len(self.tokens)} out; {first}]"

    def to_json(self) -> dict[str, Any]:
        """The answer's part of what `vlmc run --json` prints."""
        speed = self.tokens_per_second()
        return {
            "text": self.text,
            "tokens": list(self.tokens),
            "choices": [asdict(choice) for choice in self.choices],
            "finish": self.finish,
            "prompt": {
                "text_tokens": self.inputs.text,
                "visual_tokens": self.inputs.visual,
                "images": self.inputs.images,
            },
            "seconds": {
                "prepare": round(self.prepare_seconds, 4),
                "first_token": round(self.first_token_seconds, 4),
                "answer": round(self.answer_seconds, 4),
            },
            "tokens_per_second": None if speed is None else round(speed, 2),
            "notes": list(self.inputs.notes),
        }
