"""Our own weights, out and in: sharded safetensors under our parameters' names.

Files are written tensor by tensor, since the format's own writer first makes a copy of a whole
file in memory. They hold no time and no host: the same weights are the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from vlmc.builder.checkpoint import assign, cut, listed, owners
from vlmc.builder.shards import INDEX, SINGLE, Stored, place, stored_tensors
from vlmc.builder.stream import CACHE_LINE, Streamed, write_safetensors
from vlmc.diagnostics import UsageError

MAX_SHARD_BYTES = 5_000_000_000

LAYOUT = 2
"""Of the bytes on disk: another number means that equal weights lie elsewhere in their files."""

Siblings = list[tuple[str, Tensor]]
"""Parameters that lie side by side, by name."""


def save_weights(
    model: nn.Module, folder: Path, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Path]:
    """Writes every parameter of `model` into `folder`, shared ones once; returns the files.

    One file `model.safetensors`, or shards of at most `max_shard_bytes` (larger siblings have a
    shard of their own) with an index. Raises OSError where the disk refuses.
    """
    shards: list[list[Siblings]] = [[]]
    room = max_shard_bytes
    for group in siblings(model):
        size = sum(tensor.nbytes for _, tensor in group)
        room -= size
        if room < 0 and shards[-1]:
            shards.append([])
            room = max_shard_bytes - size
        shards[-1].append(group)
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    files = [folder / name for name in names] if count > 1 else [folder / SINGLE]
    folder.mkdir(parents=True, exist_ok=True)
    for path, shard in zip(files, shards, strict=True):
        with path.open("wb") as file:
            _write(file, shard)
    if count > 1:
        total = sum(parameter.nbytes for parameter in model.parameters())
        places = {
            name: path.name
            for path, shard in zip(files, shards, strict=True)
            for group in shard
            for name, _ in group
        }
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        files.append(folder / INDEX)
    return files


def siblings(model: nn.Module) -> list[Siblings]:
    """The parameters of `model` in groups that lie side by side on disk, in the order of their
    registration: those of equal name (`weight`) and equal type in modules of one parent, such as
    the projections of one attention. A compiled graph can then read several projections as one
    matrix, straight from the file.
    """
    groups: dict[tuple[str, str, int], Siblings] = {}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        key = (owner.rpartition(".")[0], leaf, parameter.element_size())
        groups.setdefault(key, []).append((name, parameter.detach()))
    return list(groups.values())


def load_weights(
    model: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Gives every parameter of `model` the values that `save_weights` wrote; returns `model`.

    `dtype` None keeps the types on disk. The peak of memory is the model plus one tensor. Raises
    UsageError where names or shapes differ, EnvironmentFault where a file is damaged.
    """
    stored = check_weights(model, folder)
    where = owners(model)
    for name, one in stored.items():
        values = one.read()
        assign(where[name], place(values, dtype=dtype or values.dtype, device=device))
    return model


def check_weights(model: nn.Module, folder: Path) -> dict[str, Stored]:
    """The tensors in `folder` by name, once they are those of `model`. Reads no values. Raises as
    `load_weights` does."""
    stored = stored_tensors(folder)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    groups = {
        "missing": [name for name in wanted if name not in stored],
        "unexpected": [name for name in stored if name not in wanted],
        "no floating-point numbers": [n for n, one in stored.items() if not one.floating],
    }
    misfits = [
        f"{name}: expected the shape {list(wanted[name])}, got {list(one.shape)}"
        for name, one in stored.items()
        if name in wanted and wanted[name] != one.shape
    ]
    faults = [f"{what}: {listed(names)}" for what, names in groups.items() if names]
    faults += cut(misfits)
    if faults:
        lines = "\n  ".join(faults)
        raise UsageError(f"{folder} holds the weights of another design:\n  {lines}")
    return stored


def _write(file: BinaryIO, groups: Iterable[Siblings]) -> None:
    """One safetensors file.

    Wider types come first, so that every tensor is aligned to its own size, and among them groups
    that fill whole cache lines, so that large matrices are aligned to those too.
    """
    ordered = sorted(groups, key=lambda group: (-group[0][1].element_size(), _ragged(group)))
    tensors = [item for group in ordered for item in group]
    write_safetensors(file, [_streamed(name, tensor) for name, tensor in tensors])


def _streamed(name: str, tensor: Tensor) -> Streamed:
    return Streamed(name, tensor.dtype, tuple(tensor.shape), lambda: tensor)


def _ragged(group: Siblings) -> bool:
    return any(tensor.nbytes % CACHE_LINE for _, tensor in group)
