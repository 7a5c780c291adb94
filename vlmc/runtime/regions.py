"""Region features: from a file, or from a detector that stands in for a twin's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from vlmc.components.encoder.regions.spec import Regions
from vlmc.diagnostics import UsageError
from vlmc.runtime.images import read_frames

CELL = 8
"""Height and width of a region, in pixels, as the stand-in detector sees it."""


def read_features(path: Path, encoder: Regions) -> Tensor:
    """Features [1, regions, width] in fp32 from a safetensors file that holds `features` [regions,
    width] and, where the design asks for boxes, `boxes` [regions, 4].

    Raises UsageError where the file does not hold what the encoder takes.
    """
    found = _tensors(path)
    features = found.get("features")
    if features is None:
        names = ", ".join(sorted(found)[:8]) or "nothing"
        raise UsageError(f"{path}: holds {names}, but no tensor `features` [regions, width]")
    shape = list(features.shape)
    if len(shape) != 2 or shape[1] != encoder.width or not 1 <= shape[0] <= encoder.count:
        raise UsageError(
            f"{path}: `features` has the shape {shape}; [regions, width] of "
            f"[1 to {encoder.count}, {encoder.width}] is expected"
        )
    if not features.is_floating_point() or not bool(torch.isfinite(features).all()):
        raise UsageError(f"{path}: `features` must be finite floating-point numbers")
    boxes = found.get("boxes")
    if encoder.boxes and boxes is None:
        raise UsageError(f"{path}: the design asks for `boxes` [regions, 4], but there are none")
    if boxes is not None and list(boxes.shape) != [shape[0], 4]:
        raise UsageError(
            f"{path}: `boxes` has the shape {list(boxes.shape)}, but there are {shape[0]} "
            f"regions: [{shape[0]}, 4] is expected"
        )
    return features.float()[None]


def stand_in(images: Sequence[Path], encoder: Regions) -> tuple[Tensor, str]:
    """Features [images, regions, width] of a twin's pictures, and a note that says what they are.

    Regions are the cells of a grid, read row by row; a fixed seeded projection of a cell's pixels
    gives its features. Nothing is detected: it lets a twin see that pictures differ.
    """
    rows = math.isqrt(encoder.count)
    columns = math.ceil(encoder.count / rows)
    draw = torch.Generator().manual_seed(0)
    numbers = 3 * CELL * CELL
    projection = torch.randn(numbers, encoder.width, generator=draw) / math.sqrt(numbers)
    features: list[Tensor] = []
    for path in images:
        (image,) = read_frames(path, (0,))
        small = image.resize((columns * CELL, rows * CELL), Image.Resampling.BILINEAR)
        pixels = np.asarray(small, np.float32) / 127.5 - 1
        cells = pixels.reshape(rows, CELL, columns, CELL, 3).transpose(0, 2, 1, 3, 4)
        flat = cells.reshape(rows * columns, numbers)[: encoder.count]
        features.append(torch.tensor(flat) @ projection)
    note = (
        f"regions are a {rows} x {columns} grid of each image, by a stand-in for the object "
        f"detector; --features FILE gives real ones"
    )
    return torch.stack(features), note


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return {name: file.get_tensor(name) for name in file.keys()}  # pyright: ignore  # noqa: SIM118
    except Exception as error:  # the library has an error class of its own for each version
        raise UsageError(f"{path}: not a safetensors file: {error}") from None
