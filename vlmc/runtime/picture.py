"""What may be given as a picture, and what is said of anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmc.diagnostics.faults import UsageError

Source = Path | bytes | Image.Image | tuple["Source", ...]
"""A file or a folder of frames, the bytes of a file, a decoded picture, the frames of a video."""

LONGEST_SHOWN = 120
"""Letters of a name that a message repeats."""

ACCEPTED = (
    "a path, the bytes of a file, a Pillow image, or a numpy array (uint8, or floats from 0 to 1) "
    "[height, width], [height, width, 3 or 4] or, for a video, [frames, height, width, 3]"
)


def source_of(given: object) -> Source:
    """What `given` shows. A list is the frames of one video.

    Raises UsageError, with what would do, where it is no picture.
    """
    if isinstance(given, str) and not given:
        raise UsageError("an empty text is no path to a picture")
    if isinstance(given, str | Path):
        return _file(str(given))
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(given, Image.Image):
        return given
    if isinstance(given, np.ndarray):
        return _of_array(cast("NDArray[Any]", given))
    if isinstance(given, list | tuple):
        frames = [source_of(one) for one in cast("Sequence[object]", given)]
        if not frames:
            raise UsageError("a video without a single frame: an empty list was given")
        if any(isinstance(one, tuple) for one in frames):
            raise UsageError("a list stands for the frames of one video, and no frame is a video")
        return tuple(frames)
    if hasattr(given, "detach"):
        raise UsageError("a tensor was given as a picture; give its numpy array: tensor.numpy()")
    raise UsageError(f"{_kind(given)} is no picture: give {ACCEPTED}")


def _file(name: str) -> Path:
    """A path that the file system can be asked for. Raises UsageError for a text that is none."""
    scheme = name[:16].partition(":")[0].lower()
    if scheme == "data":
        raise UsageError(
            "a data URL is no path: give the bytes that it holds, base64.b64decode(url.split(',', "
            "1)[1])"
        )
    if scheme in ("http", "https", "ftp", "s3", "gs"):
        raise UsageError(f"{_short(name)}: nothing is fetched from a URL; give a path or the bytes")
    if scheme == "file":
        raise UsageError(f"{_short(name)}: a URL is no path; leave file:// out")
    try:
        Path(name).stat()
    except FileNotFoundError:
        pass  # said with the question, where it is opened
    except (OSError, ValueError) as error:  # too long, no directory, a null byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{_short(name)}: no path to a picture: {reason}") from None
    return Path(name)


def _short(name: str) -> str:
    return (
        name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}... ({len(name):,} letters)"
    )


def title_of(source: Source) -> str:
    """What a message calls it: a path by its name, and everything else `the picture`."""
    return str(source) if isinstance(source, Path) else "the picture"


def _kind(given: object) -> str:
    return "None" if given is None else f"a value of type {type(given).__name__}"


def _of_array(array: NDArray[Any]) -> Source:
    shape = list(array.shape)
    if array.ndim == 4 and shape[0] > 0:
        return tuple(picture_of(frame) for frame in array)
    return picture_of(array)


def picture_of(array: NDArray[Any]) -> Image.Image:
    """An array [height, width], [height, width, 1], or [height, width, 3 or 4] as a picture. Raises
    UsageError for another shape, and for numbers that are neither uint8 nor floats from 0 to 1."""
    shape = list(array.shape)
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    flat = array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))
    if not flat or 0 in shape:
        first = array.ndim == 3 and shape[0] in (1, 3, 4)
        turn = "; channels come last: array.transpose(1, 2, 0)" if first else ""
        raise UsageError(
            f"an array of the shape {shape} is no picture: [height, width], [height, width, 3 or "
            f"4] or [frames, height, width, 3] is expected{turn}"
        )
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if not np.issubdtype(array.dtype, np.floating):
        raise UsageError(
            f"an array of {array.dtype} is no picture: uint8 (0 to 255) or floats (0 to 1) are "
            f"expected; array.astype('uint8') where its values fit"
        )
    least, most = float(array.min()), float(array.max())
    if not 0 <= least <= most <= 1:  # not a number is in no range
        raise UsageError(
            f"floats from {least:g} to {most:g} are no picture: 0 to 1 is expected, as uint8 0 to "
            f"255"
        )
    return Image.fromarray(np.rint(array * 255).astype(np.uint8))
