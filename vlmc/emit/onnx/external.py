"""Constants that lie in safetensors files beside a graph, none of them inside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from torch import Tensor

from vlmc.builder.located import Located, adjacent

FORMATS: dict[str, int] = {
    "F64": onnx.TensorProto.DOUBLE,
    "F32": onnx.TensorProto.FLOAT,
    "F16": onnx.TensorProto.FLOAT16,
    "BF16": onnx.TensorProto.BFLOAT16,
    "U8": onnx.TensorProto.UINT8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Initializer:
    """A constant of a graph: a stretch of a file below the graph's folder."""

    name: str
    format: str
    """In the word of safetensors, such as `BF16`."""
    shape: tuple[int, ...]
    location: str
    """The file, from the graph's folder on."""
    span: tuple[int, int] | None = None
    """Bytes from the beginning of the file; None of a file that is yet to be written, in which it
    has the name of the constant."""

    def proto(self, written: Mapping[str, Located]) -> onnx.TensorProto:
        """As it stands in a graph; `written` holds what was yet to be written, by name."""
        begin, end = self.span or (written[self.name].begin, written[self.name].end)
        stored = onnx.TensorProto(name=self.name, data_type=FORMATS[self.format], dims=self.shape)
        stored.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": self.location, "offset": str(begin), "length": str(end - begin)}
        for key, value in place.items():
            entry: Any = stored.external_data.add()
            entry.key, entry.value = key, value
        return stored


def of_weights(name: str, parts: Sequence[Located], folder: str) -> list[Initializer]:
    """`parts` joined along their first dimension, as one constant where they are one stretch of a
    file, and as one constant each where they are not. `folder` holds the weights' files, as seen
    from the graph."""
    if not adjacent(parts):
        alone = [of_weights(f"{name}.{index}", [one], folder) for index, one in enumerate(parts)]
        return [one for group in alone for one in group]
    shape = parts[0].shape
    if len(parts) > 1:
        shape = (sum(part.shape[0] for part in parts), *shape[1:])
    return [
        Initializer(
            name=name,
            format=parts[0].dtype,
            shape=shape,
            location=f"{folder}/{parts[0].file.name}",
            span=(parts[0].begin, parts[-1].end),
        )
    ]


class Tables:
    """Small constants that are no weights, for one file that all graphs of a build share."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.values: dict[str, Tensor] = {}
        self._known: dict[tuple[object, ...], str] = {}

    def add(self, graph: str, values: Tensor) -> Initializer:
        """Keeps `values` [any shape, fp32]; the same ones asked for twice are stored once."""
        values = values.detach().contiguous()
        raw: Any = values.numpy()
        key = (tuple(values.shape), hashlib.sha256(raw.tobytes()).digest())
        if key not in self._known:
            self._known[key] = f"{graph}.table.{len(self.values)}"
            self.values[self._known[key]] = values
        return Initializer(
            name=self._known[key],
            format="F32",
            shape=tuple(values.shape),
            location=self.location,
        )
