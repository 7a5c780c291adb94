"""From a session and a question to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlmc.diagnostics import UsageError
from vlmc.runtime.generate import Sampling, generate
from vlmc.runtime.inputs import Inputs, prepare
from vlmc.runtime.session import Session
from vlmc.runtime.tokenizer import TextStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said, and what it took. Times are seconds of wall clock."""

    text: str
    tokens: tuple[int, ...]
    """The generated tokens, without the one that ends the answer."""
    finish: Literal["stop", "length"]
    """Whether the model ended its answer, or the limit of new tokens did."""
    inputs: Inputs
    prepare_seconds: float
    first_token_seconds: float
    """From the start of the model's run to its first token: vision and the whole prompt."""
    answer_seconds: float

    def tokens_per_second(self) -> float | None:
        """Tokens after the first, by the time that they took; None for an answer of one token."""
        later = self.answer_seconds - self.first_token_seconds
        return (len(self.tokens) - 1) / later if len(self.tokens) > 1 and later > 0 else None

    def summary(self) -> str:
        """One line about what it took."""
        speed = self.tokens_per_second()
        visual = f" + {self.inputs.visual} visual" if self.inputs.visual else ""
        rate = "" if speed is None else f", then {speed:,.1f} tokens/s"
        return (
            f"[{self.inputs.text}{visual} tokens in, {len(self.tokens)} out; first after "
            f"{self.first_token_seconds:.2f} s{rate}]"
        )

    def to_json(self, session: Session) -> dict[str, Any]:
        """What `vlmc run --json` prints."""
        speed = self.tokens_per_second()
        return {
            "version": 1,
            "name": session.arch.name,
            "seeded": session.source.seeded,
            "text": self.text,
            "tokens": list(self.tokens),
            "finish": self.finish,
            "prompt": {
                "text_tokens": self.inputs.text,
                "visual_tokens": self.inputs.visual,
                "images": self.inputs.images,
            },
            "seconds": {
                "load": round(session.load_seconds, 4),
                "prepare": round(self.prepare_seconds, 4),
                "first_token": round(self.first_token_seconds, 4),
                "answer": round(self.answer_seconds, 4),
            },
            "tokens_per_second": None if speed is None else round(speed, 2),
            "notes": list(self.inputs.notes),
        }


def ask(
    session: Session,
    prompt: str,
    images: Sequence[Path] = (),
    *,
    features: Path | None = None,
    max_new_tokens: int = 64,
    sampling: Sampling | None = None,
    on_note: Callable[[str], None] = lambda _: None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Answer:
    """The answer to a prompt about images. `on_note` is told what the user should know of the
    inputs before the model runs; `on_text` gets the answer piece by piece as it is made.

    Raises UsageError where the question does not fit the design.
    """
    begun = time.perf_counter()
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {max_new_tokens}: 1 or more is expected")
    if session.processor is None:
        raise UsageError("this design takes no pixels")
    if features is not None:
        raise UsageError(
            f"--features: the encoder of {session.arch.name} sees pixels; give --image PATH"
        )
    inputs = prepare(
        session.spec,
        session.arch,
        tokenizer=session.tokenizer,
        processor=session.processor,
        prompt=prompt,
        images=images,
        device=session.device,
        dtype=session.dtype,
    )
    check_context(session, inputs, max_new_tokens)
    for note in inputs.notes:
        on_note(note)
    ready = time.perf_counter()
    first = ready
    stream = TextStream(session.tokenizer)
    text: list[str] = []
    tokens: list[int] = []
    finish = "length"
    for token in generate(
        session.model,
        inputs.tensors,
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(),
        stops=session.tokenizer.stops,
        start_token=_start_token(session),
    ):
        first = time.perf_counter() if first == ready else first
        if token in session.tokenizer.stops:
            finish = "stop"
            break
        tokens.append(token)
        text.append(stream.push(token))
        on_text(text[-1])
    text.append(stream.finish())
    on_text(text[-1])
    return Answer(
        text="".join(text),
        tokens=tuple(tokens),
        finish=finish,
        inputs=inputs,
        prepare_seconds=ready - begun,
        first_token_seconds=first - ready,
        answer_seconds=time.perf_counter() - ready,
    )


def check_context(session: Session, inputs: Inputs, max_new_tokens: int) -> None:
    """Raises UsageError, with the arithmetic, where prompt and answer exceed the positions that the
    language model has."""
    context = session.spec.language.context
    if context is None:
        return
    prompt = f"{inputs.text} text"
    if inputs.visual:
        prompt += (
            f" + {inputs.images} images x {inputs.visual // inputs.images} visual tokens = "
            f"{inputs.sequence}"
        )
    apart = session.spec.language.architecture == "encoder_decoder"
    longest = max(inputs.sequence, max_new_tokens) if apart else inputs.sequence + max_new_tokens
    if longest <= context:
        return
    left = context if apart else context - inputs.sequence
    if inputs.sequence > context or left < 1:
        raise UsageError(
            f"the prompt is too long: {prompt} tokens, but the language model has {context} "
            f"positions; shorten it or give fewer images"
        )
    raise UsageError(
        f"prompt and answer are too long: {prompt} + {max_new_tokens} new = {longest} tokens, but "
        f"the language model has {context} positions; give --max-new-tokens {left}"
    )


def _start_token(session: Session) -> int | None:
    """What the decoder of an encoder-decoder begins with."""
    found = session.arch.node("language").arguments.get("start_token")
    return found if isinstance(found, int) else None
