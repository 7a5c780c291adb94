"""What a sequence can hold of text and images; needs nothing else of vlmc."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why so much text and so many images are no sequence, and the nearest that are one."""

    message: str
    expected: str
    got: str
    text: int
    images: int


def no_room(text: int, images: int, *, each: int, words: int, context: int | None) -> NoRoom | None:
    """Why a model with `context` positions cannot read `text` tokens of text with `images` images;
    None where it can. An image takes `each` positions beside the text, and `words` tokens of it."""
    least, visual = images * words + 1, images * each
    bound = max(text, least) + visual if context is None else context
    if least <= text <= bound - visual:
        return None
    some, nearest = images, min(max(text, least), bound - visual)
    if nearest < least:  # so many images leave no word
        some = (bound - 1) // (each + words)
        nearest = bound - some * each
    if text < least:
        return NoRoom(
            message=f"{images} images leave no word in {text} tokens of text",
            expected=f"at least {least}: a token for each image, and a word",
            got=f"{text}",
            text=nearest,
            images=some,
        )
    return NoRoom(
        message=f"text and images are {text + visual - bound} over the language model's context",
        expected=f"at most {bound} positions",
        got=f"{text} text + {images} images x {each} tokens = {text + visual}",
        text=nearest,
        images=some,
    )
