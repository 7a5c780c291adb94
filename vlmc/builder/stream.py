"""The writer of safetensors files, tensor by tensor: one tensor at a time is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch import Tensor

CACHE_LINE = 64
"""Bytes."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}


@dataclass(frozen=True, slots=True)
class Streamed:
    """A tensor that is to be written, and how to get its values when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def write_safetensors(file: BinaryIO, tensors: Sequence[Streamed]) -> None:
    """One file in the order of `tensors`: the length of the header, the header, the values, which
    begin at a cache line. Raises OSError where the disk refuses."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        start = end
        end += torch.Size(one.shape).numel() * one.dtype.itemsize
        header[one.name] = {
            "dtype": DTYPES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % CACHE_LINE)
    file.write(len(text).to_bytes(8, "little") + text)
    for one in tensors:
        values = one.read()
        assert (values.shape, values.dtype) == (one.shape, one.dtype), one.name
        flat = values.cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().data)
