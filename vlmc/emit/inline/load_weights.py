"""Reading safetensors with torch alone. This file is inlined into every emitted model."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, mapped into memory: a tensor is read when it is used."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            dtype = DTYPES[entry["dtype"]]
            part = data[begin:end]
            aligned = part if begin % dtype.itemsize == 0 else part.clone()
            tensors[name] = aligned.view(dtype).view(entry["shape"])
    return tensors


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Puts the weights of a folder (model.safetensors, or its shards and their index) into `model`,
    which may be on the meta device. Raises RuntimeError where names or shapes differ.
    """
    index = Path(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(Path(folder, file))
    model.load_state_dict(tensors, assign=True)
