"""A prompt with its images as what an engine reads: ids, places of visual tokens, who sees what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Feature, Flags, Ids, Row
from vlmc.runtime.prompt import Place, token_ids
from vlmc.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a prompt consists of, in tokens."""

    text: int
    """Tokens of the prompt that are not visual tokens."""
    visual: int
    """Positions of the sequence that the images take."""
    images: int
    notes: tuple[str, ...] = ()
    """What the user should know of them."""

    @property
    def sequence(self) -> int:
        """Positions of the language model that the prompt takes."""
        return self.text + self.visual


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A prompt as tokens, before its images are encoded."""

    ids: Ids
    visual: Flags
    seen: Flags | None
    inputs: Inputs

    def row(self, features: Sequence[Feature]) -> Row:
        """The row with its features, one for each image."""
        return Row(ids=self.ids, visual=self.visual, features=tuple(features), seen=self.seen)


def laid_out(
    design: Design,
    tokenizer: Tokenizer,
    prompt: str,
    positions: Sequence[int],
    *,
    surrounded: bool = False,
    notes: tuple[str, ...] = (),
) -> Layout:
    """The layout of a prompt whose images take `positions` of the sequence each. `surrounded` says
    that the text brings the tokenizer's start and end itself.

    Raises UsageError where the prompt does not fit the images or the design.
    """
    place = Place(token=design.image_token, leading=design.leading, settable=design.settable)
    # A system that reads images from outside the sequence has one mark for each in it.
    ids = token_ids(
        prompt,
        tokenizer=tokenizer,
        place=place,
        images=[max(1, each) for each in positions],
        vocabulary=design.vocabulary,
        surrounded=surrounded,
    )
    if not ids:
        raise UsageError("the prompt is empty; give --prompt TEXT")
    visual = sum(positions)
    text = len(ids)
    array = np.array(ids, np.int64)
    marks = np.zeros(len(ids), np.bool_)
    seen = None
    if design.serving == "cross_attention":
        before = (array == design.image_token).cumsum()[:, None]
        number = np.arange(1, len(positions) + 1)
        seen = number <= before if design.all_previous else number == before
    elif design.serving != "single_pass" and design.image_token is not None:
        marks = array == design.image_token
        text -= visual
    elif design.serving != "single_pass":
        array = np.concatenate((np.zeros(visual, np.int64), array))
        marks = np.arange(len(array)) < visual
    inputs = Inputs(text=text, visual=visual, images=len(positions), notes=notes)
    return Layout(ids=array, visual=marks, seen=seen, inputs=inputs)


def check_images(design: Design, images: int) -> None:
    """Raises UsageError where a prompt has more images than the token budget."""
    most = design.max_images
    if images <= most:
        return
    budget = f"{most or 'no'} image{'s' * (most != 1)}"
    raise UsageError(
        f"{images} images are too many: the token budget of this design has {budget} in one "
        f"prompt; give fewer, or build it with token_budget: {{images: {images}}}"
    )


def check_context(
    design: Design, inputs: Inputs, max_new_tokens: int, capacity: int | None
) -> None:
    """Raises UsageError, with the arithmetic, where prompt and answer exceed the positions that the
    language model has, or the `capacity` of an engine's graphs (None: they have no limit)."""
    # The visual tokens of a text encoder have positions of their own; the answer of an
    # encoder-decoder has.
    taken = inputs.text if design.serving == "single_pass" else inputs.sequence
    shared = 0 if design.serving in ("encoder_decoder", "single_pass") else taken
    prompt = _taken(inputs) if taken > inputs.text else f"{inputs.text} text"
    limits = _limits(design, capacity)
    for longest, slots, has in limits:
        if taken > longest or slots <= shared:
            raise UsageError(
                f"the prompt is too long: {prompt} tokens, but {has}; shorten it or give fewer "
                f"images"
            )
    for _, slots, has in sorted(limits, key=lambda limit: limit[1]):
        if max_new_tokens > slots - shared:
            total = f"{prompt} tokens + {max_new_tokens} new = {taken + max_new_tokens:,}"
            need = total if shared else f"{max_new_tokens} new tokens"
            raise UsageError(
                f"the answer may be too long: {need}, but {has}; --max-new-tokens {slots - shared}"
            )


def _limits(design: Design, capacity: int | None) -> list[tuple[int, int, str]]:
    """The longest prompt, the tokens that a sequence may have, and what sets these limits."""
    found: list[tuple[int, int, str]] = []
    if design.context is not None:
        has = f"the language model has {design.context:,} positions"
        found.append((design.context, design.context, has))
    if capacity is not None:
        slots = capacity - 1 if design.serving == "encoder_decoder" else capacity
        has = (
            f"the token budget, for which the graphs of this build are made, has "
            f"{design.sequence:,} tokens for a prompt and {slots:,} with its answer"
        )
        found.append((design.sequence, slots, has))
    return found


def _taken(inputs: Inputs) -> str:
    """What the prompt takes, as a sum."""
    if not inputs.visual:
        return f"{inputs.text} text"
    each, rest = divmod(inputs.visual, inputs.images)
    images = f"{inputs.images} x {each}" if not rest else f"{inputs.visual}"
    return f"{inputs.text} text + {images} visual = {inputs.sequence}"
