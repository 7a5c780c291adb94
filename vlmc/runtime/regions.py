"""Region features: from a file, or from a detector that stands in for a twin's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Pixels
from vlmc.runtime.images import read_frames
from vlmc.runtime.picture import Source

CELL = 8
"""Height and width of a region, in pixels, as the stand-in detector sees it."""

NUMBERS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
}
"""Number formats of a safetensors file, as they are read; bf16 is the upper half of an fp32."""

MAX_HEADER = 100_000_000
"""Bytes of a safetensors file's header at most, by the format's own limit."""


def features_of(given: object, design: Design) -> Pixels:
    """Features [1, regions, width] from an array [regions, width] or a file, as `read_features`."""
    if isinstance(given, str | Path):
        return read_features(Path(given), design)
    if isinstance(given, np.ndarray):
        return _fitting(cast("NDArray[Any]", given), design, "features")
    raise UsageError(
        f"features: a path or a numpy array [regions, {design.region_width}] is expected, not "
        f"{type(given).__name__}"
    )


def read_features(path: Path, design: Design) -> Pixels:
    """Features [1, regions, width] in fp32 from a safetensors file that holds `features` [regions,
    width] and, where the design asks for boxes, `boxes` [regions, 4].

    Raises UsageError where the file does not hold what the encoder takes.
    """
    found = stored_values(path)
    features = found.get("features")
    if features is None:
        names = ", ".join(sorted(found)[:8]) or "nothing"
        raise UsageError(f"{path}: holds {names}, but no tensor `features` [regions, width]")
    values = _fitting(features, design, f"{path}: `features`")
    boxes = found.get("boxes")
    if design.boxes and boxes is None:
        raise UsageError(f"{path}: the design asks for `boxes` [regions, 4], but there are none")
    regions = values.shape[1]
    if boxes is not None and list(boxes.shape) != [regions, 4]:
        raise UsageError(
            f"{path}: `boxes` has the shape {list(boxes.shape)}, but there are {regions} "
            f"regions: [{regions}, 4] is expected"
        )
    return values


def _fitting(features: NDArray[Any], design: Design, name: str) -> Pixels:
    shape = list(features.shape)
    width = design.region_width
    if len(shape) != 2 or shape[1] != width or not 1 <= shape[0] <= design.regions:
        raise UsageError(
            f"{name} has the shape {shape}; [regions, width] of [1 to {design.regions}, {width}] "
            f"is expected"
        )
    if not np.issubdtype(features.dtype, np.floating) or not np.isfinite(features).all():
        raise UsageError(f"{name} must be finite floating-point numbers")
    return features.astype(np.float32)[None]


def stand_in(images: Sequence[Source], design: Design) -> Pixels:
    """Features [images, regions, width] of a twin's pictures.

    Regions are the cells of a grid, read row by row; a fixed seeded projection of a cell's pixels
    gives its features. Nothing is detected: it lets a twin see that pictures differ.
    """
    rows, columns = _grid(design)
    numbers = 3 * CELL * CELL
    draw = np.random.default_rng(0)
    projection = draw.standard_normal((numbers, design.region_width)) / math.sqrt(numbers)
    features: list[Pixels] = []
    for source in images:
        (image,) = read_frames(source, (0,))
        small = image.resize((columns * CELL, rows * CELL), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float64) / 127.5 - 1
        cells = pixels.reshape(rows, CELL, columns, CELL, 3).transpose(0, 2, 1, 3, 4)
        flat = cells.reshape(rows * columns, numbers)[: design.regions]
        features.append((flat @ projection).astype(np.float32))
    return np.stack(features)


def stand_in_note(design: Design) -> str:
    """Says what a twin's region features are."""
    rows, columns = _grid(design)
    return (
        f"regions are a {rows} x {columns} grid of each image, by a stand-in for the object "
        f"detector; --features FILE gives real ones"
    )


def _grid(design: Design) -> tuple[int, int]:
    rows = math.isqrt(design.regions)
    return rows, math.ceil(design.regions / rows)


def stored_values(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a safetensors file by name, mapped from the file and not read; bf16 in fp32,
    formats that numpy lacks as bytes. Raises UsageError where it is no such file."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError("its header would be too long")
            header = json.loads(file.read(length))
        return {
            name: _values(path, 8 + length, entry)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: not a safetensors file: {error}") from None


def _values(path: Path, start: int, entry: Any) -> NDArray[Any]:
    first, last = entry["data_offsets"]
    raw: NDArray[Any] = np.zeros(0, np.uint8)
    if last > first:
        raw = np.memmap(path, np.uint8, "r", offset=start + first, shape=(last - first,))
    values = raw.view(NUMBERS.get(entry["dtype"], np.uint8)).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values
