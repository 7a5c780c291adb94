"""From pictures to pixel values, exactly as the published systems do it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.design import Preprocessing
from vlmc.runtime.engines.engine import Pixels
from vlmc.runtime.images import MAX_PIXELS
from vlmc.runtime.json_object import json_object

Bytes = NDArray[np.uint8]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_EXTENT = 16_384
"""Pixels along one side of what a processor may make."""

SQUARE_BY_DEFAULT = ("BlipImageProcessor", "IdeficsImageProcessor", "ViTImageProcessor")
"""Published processors that read a plain number for `size` as both sides (others: the shorter)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessor:
    """Pad, resize, crop, rescale and normalise, in this order. Sizes are (height, width) in pixels;
    `shortest_edge` is an alternative to `size`; mean and std are on the scale after `factor`."""

    pad: bool
    shortest_edge: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: Image.Resampling
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Pixels:
        """Pixel values [3, height, width] of an RGB picture.

        Raises UsageError where the picture is so narrow that its padded or resized copy would be
        huge.
        """
        if self.pad:
            image = self._squared(image)
        image = self._resized(image)
        pixels: Bytes = np.asarray(image).transpose(2, 0, 1)
        if self.crop is not None:
            pixels = centre_crop(pixels, self.crop)
        # The published processors multiply in float64, round to float32, then normalise in it.
        values = (pixels.astype(np.float64) * self.factor).astype(np.float32)
        mean = np.array(self.mean, np.float32)[:, None, None]
        std = np.array(self.std, np.float32)[:, None, None]
        return (values - mean) / std

    def output_size(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None where they vary with the picture."""
        return self.crop or self.size

    def _squared(self, image: Image.Image) -> Image.Image:
        """The picture in the middle of a square of the mean colour."""
        width, height = image.size
        side = max(width, height)
        if width == height:
            return image
        if side * side > MAX_PIXELS:
            raise UsageError(
                f"the picture is {width} x {height}: padded to a square it becomes {side:,} x "
                f"{side:,} pixels, more than {MAX_PIXELS:,}; crop it first"
            )
        colour = tuple(int(value * 255) for value in self.mean)
        square = Image.new("RGB", (side, side), cast("Any", colour))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if self.shortest_edge is not None:
            # The longer side is rounded down, as torchvision and transformers do.
            longer = int(self.shortest_edge * max(width, height) / min(width, height))
            if longer * self.shortest_edge > MAX_PIXELS:
                raise UsageError(
                    f"the picture is {width} x {height}: with its shorter side at "
                    f"{self.shortest_edge} it becomes {self.shortest_edge} x {longer:,} pixels, "
                    f"more than {MAX_PIXELS:,}; crop it first"
                )
            shape = (self.shortest_edge, longer)
            height, width = shape if height <= width else shape[::-1]
        elif self.size is not None:
            height, width = self.size
        return image.resize((width, height), resample=self.resample)


def centre_crop(pixels: Bytes, size: tuple[int, int]) -> Bytes:
    """The middle of [channels, height, width]; black where the picture is smaller than `size`."""
    (height, width), (rows, columns) = pixels.shape[1:], size
    top, left = (height - rows) // 2, (width - columns) // 2
    if top >= 0 and left >= 0:
        return pixels[:, top : top + rows, left : left + columns]
    canvas = np.zeros((pixels.shape[0], max(height, rows), max(width, columns)), np.uint8)
    above = math.ceil((canvas.shape[1] - height) / 2)
    before = math.ceil((canvas.shape[2] - width) / 2)
    canvas[:, above : above + height, before : before + width] = pixels
    top, left = top + above, left + before
    return canvas[:, top : top + rows, left : left + columns]


def from_spec(preprocess: Preprocessing, image_size: int) -> ImageProcessor:
    """The processor that a design describes; `image_size` in pixels."""
    square = (image_size, image_size)
    by_edge = preprocess.resize == "shortest_edge"
    return ImageProcessor(
        pad=preprocess.resize == "pad",
        shortest_edge=image_size if by_edge else None,
        size=None if by_edge else square,
        crop=square if by_edge else None,
        resample=RESAMPLING[preprocess.interpolation],
        factor=1 / 255,
        mean=preprocess.mean,
        std=preprocess.std,
    )


def from_checkpoint(folder: Path, base: ImageProcessor) -> ImageProcessor:
    """What the image processor's file in a checkpoint folder says, `base` where it is silent.

    Raises UsageError where the file is no such description or asks for what vlmc does not do.
    """
    path, config = _config(folder)
    if config is None:
        return base
    try:
        return _overlaid(config, base)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"{path}: not an image processor that vlmc can follow: {error}") from None


def has_processor(folder: Path) -> bool:
    """Whether a folder describes an image processor."""
    return _config(folder)[1] is not None


def check_size(processor: ImageProcessor, image_size: int, where: str) -> None:
    """Raises UsageError unless pictures come out at the size that the encoder was made for."""
    size = processor.output_size()
    if size != (image_size, image_size):
        made = "pictures of varying size" if size is None else f"{size[0]} x {size[1]} pixels"
        raise UsageError(
            f"{where} makes {made}, but the encoder takes {image_size} x {image_size}: "
            f"the preprocessing and encoder.image_size must agree"
        )


def _config(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, json_object(path)
    path = folder / "processor_config.json"
    if path.is_file():
        nested = json_object(path).get("image_processor")
        if isinstance(nested, dict):
            return path, cast("dict[str, Any]", nested)
    return path, None


def _overlaid(config: dict[str, Any], base: ImageProcessor) -> ImageProcessor:
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    result = base
    size = config.get("size", config.get("image_size"))
    if not config.get("do_resize", True):
        raise ValueError("do_resize is false, so that pictures would not fit the encoder")
    if size is not None:
        result = _with_size(result, size, kind.startswith(SQUARE_BY_DEFAULT))
    crop = config.get("crop_size")
    if "do_center_crop" in config or crop is not None:
        wanted = config.get("do_center_crop", True)
        result = replace(result, crop=_pair(crop, result.crop) if wanted else None)
    if "resample" in config:
        result = replace(result, resample=Image.Resampling(config["resample"]))
    if "do_pad" in config:
        result = replace(result, pad=bool(config["do_pad"]))
    if config.get("do_rescale") is False:
        result = replace(result, factor=1.0)
    elif "rescale_factor" in config:
        result = replace(result, factor=float(config["rescale_factor"]))
    if config.get("do_normalize") is False:
        return replace(result, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if config.get("image_mean") is not None:
        result = replace(result, mean=_channels(config["image_mean"], "image_mean"))
    if config.get("image_std") is not None:
        result = replace(result, std=_channels(config["image_std"], "image_std"))
    return result


def _with_size(base: ImageProcessor, size: Any, square: bool) -> ImageProcessor:
    if isinstance(size, int):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    if not isinstance(size, dict):
        raise ValueError(f"size is {size!r}")
    edges = cast("dict[str, Any]", size)
    if edges.get("longest_edge") is not None:
        raise ValueError("size.longest_edge is not followed")
    if edges.get("shortest_edge") is not None:
        return replace(base, shortest_edge=_extent(edges["shortest_edge"]), size=None)
    return replace(base, shortest_edge=None, size=_height_width(edges, "size"))


def _pair(crop: Any, default: tuple[int, int] | None) -> tuple[int, int] | None:
    if crop is None:
        return default
    if isinstance(crop, int):
        return _extent(crop), _extent(crop)
    return _height_width(crop, "crop_size")


def _height_width(value: Any, name: str) -> tuple[int, int]:
    try:
        return _extent(value["height"]), _extent(value["width"])
    except KeyError as error:
        raise ValueError(f"{name} has no {error}") from None


def _extent(value: Any) -> int:
    if not isinstance(value, int) or not 0 < value <= MAX_EXTENT:
        raise ValueError(f"{value!r} is not a number of pixels")
    return value


def _channels(values: Any, name: Literal["image_mean", "image_std"]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or (name == "image_std" and 0.0 in numbers):
        raise ValueError(f"{name} must hold three numbers, none 0 in image_std")
    return numbers
