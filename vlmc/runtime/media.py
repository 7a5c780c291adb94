"""Which frames of what is given the vision part sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.engines.engine import Pixels
from vlmc.runtime.images import frame_count, read_frames, spread
from vlmc.runtime.picture import Source, source_of, title_of
from vlmc.runtime.processor import ImageProcessor


@dataclass(frozen=True, slots=True)
class Clip:
    """What counts as one image: a still is a video of one frame."""

    frames: tuple[tuple[Source, int], ...]
    """Files, folders or pictures with the index of the frame in each."""
    name: str = ""
    notes: tuple[str, ...] = ()


def listed(given: object, what: str) -> list[object]:
    """One thing or several as a list. Raises UsageError for what can be no list of pictures."""
    if given is None:
        return []
    if isinstance(given, list | tuple):
        return list(cast("Sequence[object]", given))
    if isinstance(given, dict | set | int | float):
        kind = type(cast("object", given)).__name__
        raise UsageError(f"{what}: a list is expected, not {kind}")
    return [given]


def sources(given: Sequence[object], what: str) -> list[Source]:
    """Every picture of a list. Raises UsageError that says which of them is none."""
    found: list[Source] = []
    for number, one in enumerate(given, start=1):
        try:
            found.append(source_of(one))
        except UsageError as error:
            raise UsageError(f"{what} {number}: {error}") from None
    return found


def one_video(stills: Sequence[Source], *, most: int) -> Clip:
    """Several stills as the frames of one video. Raises UsageError where one has frames itself."""
    for source in stills:
        count = frame_count(source)
        if count > 1 or isinstance(source, tuple) or (isinstance(source, Path) and source.is_dir()):
            raise UsageError(
                f"{title_of(source)}: several files for one <image> are the frames of one video, "
                f"but this one has {count} frames itself; write one <image> for each --image"
            )
    return Clip(
        tuple((stills[i], 0) for i in spread(len(stills), most)),
        "the images",
        _shortened("the images", len(stills), most),
    )


def clip_of(source: Source, name: str, *, most: int) -> Clip:
    """The frames that an encoder which sees `most` frames is shown of `source`.

    Raises UsageError where it is no picture, or a video before an encoder of stills.
    """
    count = frame_count(source)
    if most > 1:
        frames = tuple((source, i) for i in spread(count, most))
        return Clip(frames, name, _shortened(name, count, most))
    if isinstance(source, tuple) or (isinstance(source, Path) and source.is_dir()):
        raise UsageError(
            f"{name}: a folder or list of frames is a video, but the encoder sees still images; "
            f"encoder.frames declares how many frames it takes"
        )
    note = f"{name}: the first of {count} frames, since the encoder declares no frames"
    return Clip(((source, 0),), name, (note,) if count > 1 else ())


def clip_pixels(clip: Clip, processor: ImageProcessor) -> Pixels:
    """Pixels [frames, 3, height, width]. Raises UsageError where a frame cannot be read."""
    frames: list[Pixels] = []
    for _, run in groupby(clip.frames, key=lambda frame: id(frame[0])):
        shown = list(run)
        try:
            found = read_frames(shown[0][0], [index for _, index in shown])
            frames.extend(processor(image) for image in found)
        except UsageError as error:
            message = str(error)
            raise UsageError(named_once(message, clip.name)) from None
    return np.stack(frames)


def named_once(message: str, name: str) -> str:
    """A message about a picture, with what it is called in front."""
    rest = message.removeprefix("the picture: ")
    return message if not name or name in message else f"{name}: {rest}"


def _shortened(name: str, total: int, most: int) -> tuple[str, ...]:
    if total <= most:
        return ()
    return (f"{name}: {most} of {total} frames, evenly spread (encoder.frames)",)
