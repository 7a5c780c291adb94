"""The inputs on which artifacts are compared with eager: the same for the same design."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Feature, Flags, Ids, Pixels, Row

STEPS = 16
"""Tokens by which a cache is continued."""
LENGTHS = (23, 11)
"""Tokens of text of the rows of a batch, as far as the token budget allows."""
SEVERAL = 3
"""Images of a row that has several, as far as the token budget allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row before its images are encoded."""

    ids: Ids
    visual: Flags
    images: tuple[int, ...]
    """Which of the case's images the row holds, in their order."""
    seen: Flags | None

    def row(self, features: Sequence[Feature]) -> Row:
        """The row with the features of an engine's own."""
        chosen = tuple(features[index] for index in self.images)
        return Row(ids=self.ids, visual=self.visual, features=chosen, seen=self.seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Rows that are read at once, and tokens that are then appended to each."""

    name: str
    seed: int
    shape: tuple[int, ...] | None
    """Of the pixels, or of the features of regions; None without images."""
    prompts: tuple[Prompt, ...]
    generates: bool
    """Whether the design writes text; otherwise it answers in one pass."""
    steps: int

    def pixels(self) -> Pixels:
        """The images, drawn anew at each call: those of long videos are large."""
        assert self.shape is not None
        draw = np.random.default_rng(self.seed)
        return draw.standard_normal(self.shape, np.float32)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each row."""
        return tuple(len(prompt.ids) for prompt in self.prompts)

    @property
    def images(self) -> tuple[int, ...]:
        """Images of each row."""
        return tuple(len(prompt.images) for prompt in self.prompts)


def cases(design: Design) -> list[Case]:
    """One row and two of unlike lengths; no image, one and several, as far as the design has room
    for them; the shortest videos and the longest."""
    most = min(design.max_images, SEVERAL)
    longest = design.frames
    wanted: list[tuple[tuple[int, ...], int]] = [((0,), 1)]
    if most > 0:
        wanted += [((1,), longest), ((most, 1), longest), ((0, 1), 1)]
    else:
        wanted.append(((0, 0), 1))
    if most > 1:
        wanted.append(((most,), 1))
    return [_case(design, images, frames, seed) for seed, (images, frames) in enumerate(wanted)]


def _case(design: Design, images: Sequence[int], frames: int, seed: int) -> Case:
    draw = np.random.default_rng(seed)
    steps = max(0, min(STEPS, design.text - 2)) if design.generates else 0
    room = max(1, design.text - steps)
    starts = np.cumsum([0, *images])
    prompts = tuple(
        _prompt(
            design, draw, min(LENGTHS[i % 2], room), range(starts[i], starts[i + 1]), frames - 1
        )
        for i in range(len(images))
    )
    total = int(starts[-1])
    rows = "one row" if len(images) == 1 else f"{len(images)} rows"
    held = " and ".join(str(count) for count in images)
    name = f"{rows}, images: {held}" + (f" of {frames} frames" if frames > 1 else "")
    return Case(
        name=name,
        seed=seed,
        shape=_shape(design, total, frames) if total else None,
        prompts=prompts,
        generates=design.generates,
        steps=steps,
    )


def _shape(design: Design, images: int, frames: int) -> tuple[int, ...]:
    if design.input_name == "visual_embeds":
        return images, design.regions, design.region_width
    size = design.image_size or 1
    clip = (frames,) if design.frames > 1 else ()
    return (images, *clip, 3, size, size)


def _prompt(
    design: Design, draw: np.random.Generator, text: int, images: range, frames: int
) -> Prompt:
    """Words drawn at random. Visual tokens stand after the first word, or in front of it where the
    design has no place for them among words; images that are looked at from outside are spread over
    the words, the first after one that sees none."""
    inside = design.serving in ("sequence", "encoder_decoder")
    each = design.positions[frames] if inside else 0
    words = draw.integers(0, design.vocabulary, text)
    if design.image_token is not None:
        words = np.where(words == design.image_token, (words + 1) % design.vocabulary, words)
    begin = min(1, text) if design.image_token is not None else 0
    standing = each * len(images)
    filler = np.full(standing, design.image_token or 0)
    ids = np.concatenate([words[:begin], filler, words[begin:]]).astype(np.int64)
    visual = np.zeros(len(ids), np.bool_)
    visual[begin : begin + standing] = True
    seen = None
    if design.serving == "cross_attention" and images:
        seen = np.zeros((len(ids), len(images)), np.bool_)
        for index in range(len(images)):
            mark = 1 + index * max(1, len(ids) // len(images))
            seen[mark:, index] = True
            if not design.all_previous:
                seen[mark:, :index] = False
    return Prompt(ids=ids, visual=visual, images=tuple(images), seen=seen)
