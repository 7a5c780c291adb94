"""A folder of safetensors files: what is in it, and its tensors one at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlmc.diagnostics import EnvironmentFault, UsageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class _Slice(Protocol):
    """A tensor's header, as the library gives it."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor on disk."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """In the format's own word, such as `BF16`."""

    @property
    def floating(self) -> bool:
        """Whether it holds real numbers: weights do; codes of a quantized layer do not."""
        return self.dtype == "BF16" or self.dtype.startswith("F")

    def read(self) -> Tensor:
        """Its values, mapped from the file. The mapping lasts as long as the tensor, so that no
        page of another tensor stays resident."""
        try:
            with safe_open(self.file, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
                return cast("Tensor", file.get_tensor(self.name))  # pyright: ignore[reportUnknownMemberType]
        except (SafetensorError, OSError) as error:
            raise EnvironmentFault(f"{self.file}: {self.name} cannot be read: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError where it is absent or something else."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path.parent}: there is no {path.name} in this folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds no JSON object")
    return cast("dict[str, Any]", value)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by name, in a fixed order; only headers are read.

    Raises UsageError where there is nothing to read, EnvironmentFault where a file is missing or
    damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    if (folder / INDEX).exists():
        return _indexed(folder)
    if (folder / SINGLE).exists():
        return {one.name: one for one in _header(folder / SINGLE)}
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    )
    if pickles:
        raise UsageError(
            f"{folder}: holds {pickles[0]}, which is pickle and is never loaded; "
            "convert the checkpoint to safetensors"
        )
    raise UsageError(f"{folder}: there is no {SINGLE} and no {INDEX} in this folder")


def _indexed(folder: Path) -> dict[str, Stored]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict):
        raise UsageError(f"{folder / INDEX}: has no weight_map")
    places = {str(k): str(v) for k, v in cast("dict[Any, Any]", index).items()}
    files = sorted(set(places.values()))
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UsageError(f"{folder / INDEX}: names {name!r}, which is no safetensors file here")
    lost = [name for name in files if not (folder / name).is_file()]
    if lost:
        raise EnvironmentFault(
            f"{folder}: {len(lost)} of {len(files)} shards that {INDEX} names are missing: "
            + ", ".join(lost[:8])
        )
    found = {one.name: one for name in files for one in _header(folder / name)}
    absent = [name for name, file in places.items() if _place(found.get(name)) != file]
    if absent:
        raise EnvironmentFault(
            f"{folder}: {len(absent)} tensors are not where {INDEX} says: " + ", ".join(absent[:8])
        )
    return found


def _place(stored: Stored | None) -> str | None:
    return None if stored is None else stored.file.name


def _header(path: Path) -> list[Stored]:
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            names = sorted(cast("list[str]", file.keys()))  # pyright: ignore[reportUnknownMemberType]
            pieces = {name: cast("_Slice", file.get_slice(name)) for name in names}  # pyright: ignore[reportUnknownMemberType]
            return [
                Stored(name, path, tuple(piece.get_shape()), piece.get_dtype())
                for name, piece in pieces.items()
            ]
    except (SafetensorError, OSError) as error:
        raise EnvironmentFault(
            f"{path}: is damaged or cut short ({error}); fetch or write it again"
        ) from None


def place(values: Tensor, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """A copy of mapped values in memory of their own.

    Always a copy: a parameter that is the mapping itself would change with the file, and its odd
    alignment changes the last bits of a product.
    """
    return torch.empty(values.shape, dtype=dtype, device=device).copy_(values)
