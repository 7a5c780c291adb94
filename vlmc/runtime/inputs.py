"""From a prompt, image files and a design to the model's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlmc.components.encoder.regions.spec import Regions
from vlmc.diagnostics import UsageError
from vlmc.ir import Arch
from vlmc.runtime.images import frame_count, read_frames, spread
from vlmc.runtime.processor import ImageProcessor
from vlmc.runtime.prompt import Place, count_markers, token_ids
from vlmc.runtime.regions import read_features, stand_in
from vlmc.runtime.tokenizer import Tokenizer
from vlmc.spec.document import ModelSpec

IN_FRONT = ("prefix", "query_prefix")
"""Fusions whose leading images stand before the start token (Li et al., 2023, figure 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The model's keyword arguments for one sequence, and what they consist of."""

    tensors: dict[str, Tensor]
    text: int
    """Tokens of the prompt that are not visual tokens."""
    visual: int
    """Positions of the sequence that the images take."""
    images: int
    notes: tuple[str, ...] = ()

    @property
    def sequence(self) -> int:
        """Positions of the language model that the prompt takes."""
        return self.text + self.visual


@dataclass(frozen=True, slots=True)
class Clip:
    """What counts as one image: a still is a video of one frame."""

    frames: tuple[tuple[Path, int], ...]
    """Files (or folders) with the index of the frame in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the encoder is given: its input, or None without images."""

    values: Tensor | None
    images: int
    each: int
    """Positions of the sequence that one image takes."""
    notes: tuple[str, ...] = ()


def prepare(
    spec: ModelSpec,
    arch: Arch,
    *,
    tokenizer: Tokenizer,
    prompt: str,
    seen: Seen,
    device: torch.device,
    dtype: torch.dtype,
) -> Inputs:
    """The prompt with its images as the model's inputs.

    Raises UsageError where the prompt does not fit the images or the design.
    """
    token = arch.node("fusion").arguments.get("image_token")
    place = Place(
        token=token if isinstance(token, int) else None,
        leading=arch.node("fusion").kind in IN_FRONT,
        settable="token" in type(spec.fusion).model_fields,
    )
    ids = token_ids(
        prompt,
        tokenizer=tokenizer,
        place=place,
        # A system that reads images from outside the sequence has one mark for each in it.
        images=[max(1, seen.each)] * seen.images,
        vocabulary=spec.language.total_vocabulary,
    )
    if not ids:
        raise UsageError("the prompt is empty; give --prompt TEXT")
    tensors = {"input_ids": torch.tensor([ids], dtype=torch.long, device=device)}
    if seen.values is not None:
        values = seen.values.to(device, dtype)
        rows = spec.fusion.memory(spec.adapter.output(spec.encoder.visual(), spec.language)) > 0
        # Images outside the sequence are told apart by row: [batch, images, ...].
        tensors[spec.encoder.input_name()] = values[None] if rows else values
    visual = seen.each * seen.images
    text = len(ids) - (visual if place.token is not None else 0)
    return Inputs(tensors=tensors, text=text, visual=visual, images=seen.images, notes=seen.notes)


def see(spec: ModelSpec, processor: ImageProcessor, images: Sequence[Path], prompt: str) -> Seen:
    """Reads, resizes and normalises image files.

    Raises UsageError where a file is no image, or there are more frames than the design takes.
    """
    chosen, notes = clips(images, prompt, most=spec.encoder.visual().frames)
    each = _positions(spec, len(chosen[0].frames) if chosen else 1)
    values = pixel_values(chosen, processor) if chosen else None
    return Seen(values=values, images=len(chosen), each=each, notes=notes)


def see_regions(
    encoder: Regions, images: Sequence[Path], features: Path | None, *, seeded: bool
) -> Seen:
    """Region features from a file; for a twin, from images by a stand-in detector.

    Raises UsageError where a design with real weights is given an image.
    """
    if features is not None and images:
        raise UsageError("--features stands in place of --image: give one of them")
    if features is not None:
        values, notes = read_features(features, encoder), ()
    elif not images:
        return Seen(values=None, images=0, each=0)
    elif not seeded:
        raise UsageError(
            f"this design sees no pixels: it takes the features of up to {encoder.count} regions "
            f"that an object detector computed beforehand; give them with --features FILE "
            f"(safetensors: `features` [regions, {encoder.width}])"
        )
    else:
        values, note = stand_in(images, encoder)
        notes = (note,)
    return Seen(values=values, images=values.shape[0], each=values.shape[1], notes=notes)


def _positions(spec: ModelSpec, frames: int) -> int:
    """Positions of the sequence that an image of `frames` frames takes."""
    seen = replace(spec.encoder.visual(), frames=frames)
    return spec.fusion.in_sequence(spec.adapter.output(seen, spec.language))


def clips(images: Sequence[Path], prompt: str, *, most: int) -> tuple[list[Clip], tuple[str, ...]]:
    """What the files mean to an encoder that sees `most` frames, and what the user should know.

    Each file or folder is one image or video; several stills for a single marker are the frames of
    one video. Raises UsageError where they are no such thing.
    """
    counts = {path: frame_count(path) for path in images}
    if most == 1:
        return _stills(images, counts)
    if len(images) > 1 and count_markers(prompt) == 1:
        moving = [path for path in images if counts[path] > 1 or path.is_dir()]
        if moving:
            raise UsageError(
                f"{moving[0]}: several files for one <image> are the frames of one video, but this "
                f"one has {counts[moving[0]]} frames itself; write one <image> for each --image"
            )
        chosen = [Clip(tuple((images[i], 0) for i in spread(len(images), most)))]
        return chosen, _cut("the images", len(images), most)
    chosen = [Clip(tuple((p, i) for i in spread(counts[p], most))) for p in images]
    lengths = {path: len(clip.frames) for path, clip in zip(images, chosen, strict=True)}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{path.name} {number}" for path, number in lengths.items())
        raise UsageError(
            f"the videos of one prompt must show equally many frames, but they show: {listed}"
        )
    notes = tuple(n for path in images for n in _cut(path.name, counts[path], most))
    return chosen, notes


def _stills(images: Sequence[Path], counts: dict[Path, int]) -> tuple[list[Clip], tuple[str, ...]]:
    for path in images:
        if path.is_dir():
            raise UsageError(
                f"{path}: a folder of frames is a video, but the encoder sees still images; "
                f"encoder.frames declares how many frames it takes"
            )
    notes = [
        f"{path.name}: the first of {counts[path]} frames, since the encoder declares no frames"
        for path in images
        if counts[path] > 1
    ]
    return [Clip(((path, 0),)) for path in images], tuple(notes)


def _cut(name: str, total: int, most: int) -> tuple[str, ...]:
    if total <= most:
        return ()
    return (f"{name}: {most} of {total} frames, evenly spread (encoder.frames)",)


def pixel_values(chosen: Sequence[Clip], processor: ImageProcessor) -> Tensor:
    """Pixels of stills [images, 3, height, width], of videos [images, frames, 3, height, width]."""
    videos: list[np.ndarray] = []
    for clip in chosen:
        frames: list[np.ndarray] = []
        for path, run in groupby(clip.frames, key=lambda frame: frame[0]):
            try:
                frames.extend(processor(image) for image in read_frames(path, [i for _, i in run]))
            except UsageError as error:
                named = str(error).startswith(str(path))
                raise UsageError(str(error) if named else f"{path}: {error}") from None
        videos.append(np.stack(frames))
    pixels = torch.from_numpy(np.stack(videos))  # pyright: ignore[reportUnknownMemberType]
    return pixels[:, 0] if pixels.shape[1] == 1 else pixels
