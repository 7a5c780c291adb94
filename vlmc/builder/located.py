"""Where the tensors of a folder of safetensors files lie, byte by byte.

Needs the standard library only, so that a build folder's own runner can map weights with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from vlmc.diagnostics.faults import EnvironmentFault

LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor's place on disk."""

    file: Path
    dtype: str
    """In the format's own word, such as `BF16`."""
    shape: tuple[int, ...]
    begin: int
    end: int
    """Bytes from the beginning of the file."""


def located(folder: Path) -> dict[str, Located]:
    """Every tensor of a folder by name; only headers are read.

    Raises EnvironmentFault where a file is missing or damaged.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return located_in(folder / "model.safetensors")
    try:
        places: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({Path(str(name)).name for name in cast("dict[str, Any]", places).values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFault(f"{index}: is damaged ({error}); build it again") from None
    return {name: one for file in files for name, one in located_in(folder / file).items()}


def located_in(file: Path) -> dict[str, Located]:
    """Every tensor of one file by name. Raises EnvironmentFault where it is missing or damaged."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= LARGEST_HEADER:
                raise ValueError("its header has no sensible length")
            header: Any = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        found = {
            str(name): Located(
                file=file,
                dtype=str(entry["dtype"]),
                shape=tuple(int(size) for size in entry["shape"]),
                begin=8 + length + int(entry["data_offsets"][0]),
                end=8 + length + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
        }
        if file.stat().st_size < max((one.end for one in found.values()), default=0):
            raise ValueError("it is cut short")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise EnvironmentFault(f"{file}: cannot be read ({error}); build it again") from None
    return found


def adjacent(parts: Sequence[Located]) -> bool:
    """Whether `parts`, in their order, are one stretch of one file in one number format, and so,
    joined along their first dimension, one tensor."""
    return all(
        before.file == after.file
        and before.dtype == after.dtype
        and before.end == after.begin
        and before.shape[1:] == after.shape[1:]
        for before, after in pairwise(parts)
    )
