"""Twins with their graphs for torch.compile, and engines that run these as they were exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engine_cases import Twin, twin

from vlmc.emit.artifact import silent
from vlmc.emit.torch_graphs import write_compile
from vlmc.runtime.engines.compiled_program import exported_module
from vlmc.runtime.engines.graph_files import GraphFile, read_graphs
from vlmc.runtime.engines.mapped_weights import MappedWeights
from vlmc.runtime.engines.torch_engine import TorchEngine

SYSTEMS = ("llava-1.5", "flamingo", "blip2-flan-t5", "visualbert")


def exported_twins(root: Path, make: Callable[[str], Path]) -> dict[str, Twin]:
    """A twin of each of `SYSTEMS`; `make` makes a folder."""
    found: dict[str, Twin] = {}
    for name in SYSTEMS:
        found[name] = twin(root, name, make(name.replace(".", "-")))
        folder = found[name].folder
        caches: Any = ("static",) if name == "flamingo" else ("static", "paged")
        write_compile(
            found[name].arch,
            folder / "weights",
            folder / "compile",
            progress=silent,
            caches=caches,
        )
    return found


class Exported:
    """An exported program as it is, compiled by nobody."""

    def __init__(self, graph: GraphFile, weights: MappedWeights) -> None:
        self.module = exported_module(graph, weights)

    def __call__(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(self.module(*inputs))


def exported(one: Twin, blocks: int | None = None) -> TorchEngine:
    """The engine of the graphs for torch.compile, without the time that compiling takes."""
    graphs = read_graphs(one.folder / "compile")
    weights = MappedWeights(one.folder / "weights", graphs.folder, torch.float32, "cpu")
    return TorchEngine(
        "compile", graphs, one.design, lambda graph: Exported(graph, weights), blocks
    )
