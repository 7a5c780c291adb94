"""The weights of a build as tensors over its own files: nothing is copied where it need not be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmc.builder.located import Located, adjacent, located, located_in
from vlmc.diagnostics.faults import EnvironmentFault
from vlmc.runtime.engines.graph_files import GraphFile

MAPPED = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""The number formats of safetensors, as torch calls them."""


class MappedWeights:
    """Weights by name, in the number format `dtype` and on `device`.

    On the CPU a tensor is a view of the mapped file. On another device, or in another number format
    than that on disk, it is a copy, made once.
    """

    def __init__(self, weights: Path, graphs: Path, dtype: torch.dtype, device: str) -> None:
        self.places = located(weights)
        extra = graphs / "constants.safetensors"
        self.extra = located_in(extra) if extra.exists() else {}
        self.dtype = dtype
        self.device = device
        self.files: dict[Path, Tensor] = {}
        self.made: dict[Any, Tensor] = {}

    def constants(self, graph: GraphFile) -> dict[str, Tensor]:
        """The constants of a graph by name. Raises EnvironmentFault where a weight is missing."""
        return {name: self.constant(parts) for name, parts in graph.constants.items()}

    def constant(self, parts: tuple[str, ...] | str) -> Tensor:
        """Weights joined along their first dimension, or a constant of the graphs' own."""
        if parts not in self.made:
            try:
                if isinstance(parts, str):
                    places = [self.extra[parts]]
                else:
                    places = [self.places[name] for name in parts]
            except KeyError as error:
                raise EnvironmentFault(
                    f"the weights of this build lack {error}, which its graphs read; build it again"
                ) from None
            values = self._joined(places).to(self.device)
            self.made[parts] = values if isinstance(parts, str) else values.to(self.dtype)
        return self.made[parts]

    def _joined(self, places: Sequence[Located]) -> Tensor:
        if not adjacent(places):
            return torch.cat([self._joined([place]) for place in places])
        first = places[0]
        shape = first.shape
        if len(places) > 1:
            shape = (sum(place.shape[0] for place in places), *shape[1:])
        dtype: Any = getattr(torch, MAPPED.get(first.dtype, ""), None)
        if dtype is None:
            raise EnvironmentFault(
                f"{first.file}: holds {first.dtype}, which this torch does not know; build it again"
            )
        part = self._mapped(first.file)[first.begin : places[-1].end]
        if first.begin % dtype.itemsize:
            part = part.clone()
        try:
            return part.view(dtype).view(shape)
        except RuntimeError:
            raise EnvironmentFault(
                f"{first.file}: a tensor of {first.dtype} {list(shape)} does not take "
                f"{len(part):,} bytes; it is damaged, build it again"
            ) from None

    def _mapped(self, file: Path) -> Tensor:
        if file not in self.files:
            size = file.stat().st_size
            # A private mapping: what is read stays shared with every other process.
            self.files[file] = torch.from_file(str(file), size=size, dtype=torch.uint8)
        return self.files[file]
