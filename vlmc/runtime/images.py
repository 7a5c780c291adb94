"""Pictures: from a file, bytes or memory to upright RGB frames, whatever they hold."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.picture import Source, picture_of, title_of

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is read. Other formats of Pillow start foreign programs (EPS) or are no pictures."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
    | {".jp2"}
)
"""File names that count as frames in a folder."""

MAX_PIXELS = 89_478_485
"""Pixels of one picture at most: a small file may claim a size that fills the memory."""


def frame_count(source: Source) -> int:
    """Frames of `source`: the images of a folder, the frames of an animated file, 1 for a still.

    Raises UsageError where nothing there is a picture.
    """
    if isinstance(source, tuple):
        return len(source)
    if isinstance(source, Path) and source.is_dir():
        return len(_folder(source))
    with _opened(source) as image:
        # The second picture of a phone's JPEG (MPO) is a preview or a depth map.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def read_frames(source: Source, indices: Iterable[int]) -> Iterator[Image.Image]:
    """The frames of `source` with these indices, each in mode RGB; of a file, one is in memory at
    a time.

    Raises UsageError where a frame cannot be read.
    """
    if isinstance(source, Path) and source.is_dir():
        source = tuple(_folder(source))
    if isinstance(source, tuple):
        for index in indices:
            with _opened(source[index]) as image:
                yield upright_rgb(image)
        return
    with _opened(source) as image:
        for index in indices:
            if index > 0 or getattr(image, "n_frames", 1) > 1:
                with warnings.catch_warnings():
                    # Pages of one file differ in size; they are judged below, as the first was.
                    warnings.simplefilter("ignore")
                    image.seek(index)
                _check_extent(image, title_of(source))
            yield upright_rgb(image)


def spread(total: int, limit: int) -> tuple[int, ...]:
    """Indices of `limit` of `total` frames, each in the middle of its stretch; all if they fit."""
    if total <= limit:
        return tuple(range(total))
    return tuple((2 * index + 1) * total // (2 * limit) for index in range(limit))


def upright_rgb(image: Image.Image) -> Image.Image:
    """The picture as it is meant to be seen: turned by its EXIF orientation, transparency on white,
    16-bit greys and floats from 0 to 1 scaled to 8 bits, every other mode converted to RGB.

    Raises UsageError for floats beyond 0 to 1 and integers beyond 16 bits, whose white nobody has
    said."""
    with warnings.catch_warnings():
        # Damaged metadata that Pillow works around is no news to somebody who wants the pixels.
        warnings.simplefilter("ignore", UserWarning)
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray(_of_integers(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "F":
        return picture_of(np.asarray(image)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _of_integers(grey: NDArray[Any], mode: str) -> NDArray[np.uint8]:
    """Greys of 16 bits, or of 8 that are stored in 32, in 8 bits."""
    least, most = int(grey.min()), int(grey.max())
    if least < 0 or most > 0xFFFF:
        raise UsageError(
            f"whole numbers from {least:,} to {most:,} are no picture: 0 to 65,535 is expected"
        )
    eight = mode == "I" and most <= 0xFF
    return (grey if eight else grey.astype(np.int64) >> 8).astype(np.uint8)


def _folder(path: Path) -> list[Path]:
    """The frames of a folder in the order of their names (frame2 before frame10)."""
    try:
        files = [f for f in path.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file()]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if not files:
        raise UsageError(f"{path}: no image files in this folder (PNG, JPEG, WebP, ...)")
    return sorted(files, key=lambda f: (_natural(f.stem), f.name))


def _natural(stem: str) -> tuple[tuple[int, str], ...]:
    """A sort key that reads runs of digits as numbers."""
    parts: list[tuple[int, str]] = []
    run = ""
    for character in f"{stem}\0":
        if run and character.isdecimal() != run[-1].isdecimal():
            parts.append((int(run), "") if run.isdecimal() else (-1, run))
            run = ""
        run += character
    return tuple(parts)


@contextmanager
def _opened(source: Source) -> Generator[Image.Image]:
    """The picture of a source, open while the block runs; every way to fail there is a
    UsageError."""
    title = title_of(source)
    if isinstance(source, Path):
        _check_file(source)
    if source == b"":
        raise UsageError(f"{title}: there are no bytes in it")
    try:
        with _open(source) as image:
            _check_extent(image, title)
            yield image
    except UsageError:
        raise
    except Image.UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise UsageError(f"{title}: not an image in a format that is read ({known})") from None
    except Image.DecompressionBombError:
        raise UsageError(_too_large(title, "far too many")) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error).split("\n")[0] or type(error).__name__
        if isinstance(source, Image.Image) and not isinstance(error, OSError):
            raise UsageError(
                f"{title}: a Pillow image without pixels ({reason}); where its file was closed, "
                "give the path, or a copy() made before that"
            ) from None
        raise UsageError(f"{title}: the image is damaged: {reason}") from None


def _check_extent(image: Image.Image, title: str) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise UsageError(f"{title}: {width} x {height} pixels, so that there is nothing to see")
    if width * height > MAX_PIXELS:
        raise UsageError(_too_large(title, f"{width} x {height} = {width * height:,}"))


def _check_file(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if not path.is_file():
        raise UsageError(f"{path}: not a regular file")
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty")


def _open(source: Source) -> AbstractContextManager[Image.Image]:
    """Reads the header only. A picture that a caller opened is his to close."""
    if isinstance(source, Image.Image):
        return nullcontext(source)
    assert not isinstance(source, tuple)
    Image.init()
    file = BytesIO(source) if isinstance(source, bytes) else source
    with warnings.catch_warnings():
        # Damaged metadata is no news to somebody who wants pixels; sizes are checked above.
        warnings.simplefilter("ignore")
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def _too_large(title: str, pixels: str) -> str:
    return f"{title}: {pixels} pixels, but a picture may have {MAX_PIXELS:,} at most; scale it down"
