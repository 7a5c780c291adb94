"""A prompt with images in it as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.tokenizer import Tokenizer

MARKER = "<image>"
"""What a prompt holds where an image belongs."""

FENCE = "<fake_token_around_image>"
"""What Idefics puts before and after each image, once between two (Laurencon et al., 2023)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How an image stands in the token sequence.

    `token` is the placeholder's id, or None where images have no place among the ids and stand in
    front of them; `leading` says whether images at the very front stand before the start token
    (BLIP-2) or after it (LLaVA).
    """

    token: int | None
    leading: bool
    settable: bool = True
    """Whether the design could be given a placeholder (`fusion.token`)."""


def count_markers(prompt: str) -> int:
    """Images that the prompt places itself."""
    return prompt.count(MARKER)


def token_ids(
    prompt: str,
    *,
    tokenizer: Tokenizer,
    place: Place,
    images: Sequence[int],
    vocabulary: int,
    surrounded: bool = False,
) -> list[int]:
    """Ids of a prompt with `images[i]` placeholders for image i: each at its marker, or all in
    front where the prompt has no marker. `surrounded` says that the text itself holds what stands
    around a prompt, as one does that a chat template made.

    Raises UsageError where the prompt is no text, where markers and images do not match, where the
    text itself reads as a placeholder, or where the tokenizer knows words that the model does not.
    """
    if any("\ud800" <= c <= "\udfff" for c in prompt):  # what a shell makes of other bytes
        raise UsageError("the prompt is no text in UTF-8: write it in that encoding")
    stretches = _stretches(prompt, len(images))
    texts = _encoded(stretches, tokenizer)
    for text in texts:
        _check(text, tokenizer, place, vocabulary)
    if place.token is None and any(texts[:-1]):
        remedy = "leave the markers out"
        if place.settable:
            remedy = "set fusion.token to a placeholder's id to place them"
        raise UsageError(
            f"this design puts images in front of the text, but the prompt has {MARKER} after "
            f"words; {remedy}"
        )
    front = 0
    while place.leading and front < len(images) and not texts[front]:
        front += 1
    start, end = ((), ()) if surrounded else (tokenizer.start, tokenizer.end)
    ids: list[int] = []
    for index, text in enumerate(texts):
        if index == front:
            ids.extend(start)
        ids.extend(text)
        if index < len(images) and place.token is not None:
            _put(ids, [place.token] * images[index], tokenizer.id(FENCE))
    return [*ids, *end]


def _put(ids: list[int], image: list[int], fence: int | None) -> None:
    if fence is None:
        ids.extend(image)
        return
    if not ids or ids[-1] != fence:
        ids.append(fence)
    ids.extend((*image, fence))


def _stretches(prompt: str, images: int) -> list[str]:
    """The text before, between and after the images."""
    markers = count_markers(prompt)
    if markers == 0:
        return [*[""] * images, prompt]
    if markers != images:
        raise UsageError(
            f"the prompt has {markers} {MARKER} marker{'s' * (markers > 1)}, but "
            f"{_images(images)} given: write one marker for each --image, or none to have them "
            f"all in front"
        )
    return prompt.split(MARKER)


def _images(number: int) -> str:
    return "1 image is" if number == 1 else f"{number or 'no'} images are"


def _encoded(stretches: list[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of each stretch; as one text where the file knows the marker, since a tokenizer may treat
    the start of a text and the start of a later stretch differently."""
    known = tokenizer.id(MARKER)
    if known is not None:
        ids = tokenizer.encode(MARKER.join(stretches))
        if ids.count(known) == len(stretches) - 1:
            return _split(ids, known)
    return [tokenizer.encode(stretch) if stretch else [] for stretch in stretches]


def _split(ids: list[int], at: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for one in ids:
        if one == at:
            parts.append([])
        else:
            parts[-1].append(one)
    return parts


def _check(text: list[int], tokenizer: Tokenizer, place: Place, vocabulary: int) -> None:
    if place.token in text:
        raise UsageError(
            f"the prompt's own text reads as the image placeholder (token {place.token}) in the "
            f"tokenizer {tokenizer.name}; write {MARKER} where an image belongs, and check that "
            f"fusion.token is the tokenizer's id of its image token"
        )
    highest = max(text, default=0)
    if highest >= vocabulary:
        raise UsageError(
            f"the tokenizer {tokenizer.name} gives token {highest}, but the language model has "
            f"{vocabulary} words (0 to {vocabulary - 1}): it belongs to another model"
        )
