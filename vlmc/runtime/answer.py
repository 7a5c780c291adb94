"""From a session and a question to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vlmc.components.encoder.regions.spec import Regions
from vlmc.diagnostics import UsageError
from vlmc.runtime.generate import Sampling, generate
from vlmc.runtime.inputs import Inputs, Seen, prepare, see, see_regions
from vlmc.runtime.predict import Choice, predict
from vlmc.runtime.session import Session
from vlmc.runtime.tokenizer import TextStream

GREEDY = Sampling()

NOISE = "the weights are seeded and have learnt nothing: the answer is noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model said, and what it took. Times are seconds of wall clock."""

    text: str
    tokens: tuple[int, ...] = ()
    """The generated tokens, without the one that ends the answer."""
    choices: tuple[Choice, ...] = ()
    """What a text encoder chose from, likeliest first."""
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
        read = f"{self.inputs.text}{visual} tokens in"
        if self.choices:
            return f"[{read}; {self.answer_seconds:.2f} s]"
        rate = "" if speed is None else f", then {speed:,.1f} tokens/s"
        first = f"first after {self.first_token_seconds:.2f} s{rate}"
        return f"[{read}, {len(self.tokens)} out; {first}]"

    def to_json(self, session: Session) -> dict[str, Any]:
        """What `vlmc run --json` prints."""
        speed = self.tokens_per_second()
        return {
            "version": 1,
            "name": session.arch.name,
            "seeded": session.source.seeded,
            "seeded_parts": list(session.source.seeded_parts(session.arch)),
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
    sampling: Sampling = GREEDY,
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
    inputs = prepare(
        session.spec,
        session.arch,
        tokenizer=session.tokenizer,
        prompt=prompt,
        seen=_seen(session, prompt, images, features),
        device=session.device,
        dtype=session.dtype,
    )
    understands = session.spec.language.architecture == "encoder"
    if understands and sampling != GREEDY:
        raise UsageError("this design generates no text, so that there is nothing to sample")
    check_context(session, inputs, 0 if understands else max_new_tokens)
    seeded = session.source.seeded_parts(session.arch)
    if session.source.seeded:
        inputs = replace(inputs, notes=(*inputs.notes, NOISE))
    elif seeded:
        named = ", ".join(seeded)
        note = f"no weights were given for these parts: {named}; {NOISE}"
        inputs = replace(inputs, notes=(*inputs.notes, note.replace("the weights", "theirs")))
    for note in inputs.notes:
        on_note(note)
    ready = time.perf_counter()
    if understands:
        text, choices = predict(session, inputs)
        on_text(text)
        spent = time.perf_counter() - ready
        return Answer(
            text=text,
            choices=choices,
            finish="stop",
            inputs=inputs,
            prepare_seconds=ready - begun,
            first_token_seconds=spent,
            answer_seconds=spent,
        )
    return _generated(session, inputs, max_new_tokens, sampling, on_text, ready - begun)


def _seen(session: Session, prompt: str, images: Sequence[Path], features: Path | None) -> Seen:
    encoder = session.spec.encoder
    if isinstance(encoder, Regions):
        return see_regions(encoder, images, features, seeded=session.source.seeded)
    if features is not None:
        raise UsageError("--features: the encoder of this design sees pixels; give --image PATH")
    assert session.processor is not None
    return see(session.spec, session.processor, images, prompt)


def _generated(
    session: Session,
    inputs: Inputs,
    max_new_tokens: int,
    sampling: Sampling,
    on_text: Callable[[str], None],
    prepare_seconds: float,
) -> Answer:
    begun = time.perf_counter()
    first = 0.0
    stream = TextStream(session.tokenizer)
    text: list[str] = []
    tokens: list[int] = []
    finish = "length"
    for token in generate(
        session.model,
        inputs.tensors,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stops=session.tokenizer.stops,
        start_token=_start_token(session),
    ):
        first = first or time.perf_counter() - begun
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
        prepare_seconds=prepare_seconds,
        first_token_seconds=first,
        answer_seconds=time.perf_counter() - begun,
    )


def check_context(session: Session, inputs: Inputs, max_new_tokens: int) -> None:
    """Raises UsageError, with the arithmetic, where prompt and answer exceed the positions that the
    language model has."""
    context = session.spec.language.context
    if context is None:
        return
    kind = session.spec.language.architecture
    # The visual tokens of a text encoder have positions of their own; the answer of an
    # encoder-decoder has.
    taken = inputs.text if kind == "encoder" else inputs.sequence
    room = context - taken if kind == "decoder" else context
    prompt = f"{inputs.text} text"
    if taken > inputs.text:
        each = inputs.visual // inputs.images
        prompt += f" + {inputs.images} x {each} visual = {taken}"
    has = f"the language model has {context:,} positions"
    if taken > context or room < 1:
        raise UsageError(
            f"the prompt is too long: {prompt} tokens, but {has}; shorten it or give fewer images"
        )
    if max_new_tokens > room:
        total = f"{prompt} tokens + {max_new_tokens} new = {taken + max_new_tokens:,}"
        need = total if kind == "decoder" else f"{max_new_tokens} new tokens"
        raise UsageError(f"the answer may be too long: {need}, but {has}; --max-new-tokens {room}")


def _start_token(session: Session) -> int | None:
    """What the decoder of an encoder-decoder begins with."""
    found = session.arch.node("language").arguments.get("start_token")
    return found if isinstance(found, int) else None
