"""Twins of which some graphs are compiled ahead of time; the rest run as they were exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import Twin

from vlmc.emit.artifact import silent
from vlmc.emit.torch_graphs import aoti as writer
from vlmc.emit.torch_graphs import write_aoti
from vlmc.emit.torch_graphs.programs import Tell
from vlmc.runtime.engines.aoti_program import AotiProgram
from vlmc.runtime.engines.compiled_program import exported_module
from vlmc.runtime.engines.graph_files import GraphFile, read_graphs
from vlmc.runtime.engines.mapped_weights import MappedWeights
from vlmc.runtime.engines.torch_engine import TorchEngine


def write_some(one: Twin, names: tuple[str, ...] | None, tell: Tell = None) -> None:
    """The folder aoti/ of a twin, in which `names` are compiled; None: all of them."""
    with pytest.MonkeyPatch.context() as patch:
        if names is not None:
            patch.setattr(writer, "_compile", _only(names))
        # Whatever this machine is: to be proven right, not fast.
        patch.setattr(writer, "onednn_is_faster", torch.backends.mkldnn.is_available)
        weights, folder = one.folder / "weights", one.folder / "aoti"
        write_aoti(one.arch, weights, folder, progress=silent, tell=tell)


def _only(names: tuple[str, ...]) -> Callable[..., Any]:
    """What compiles all graphs, but leaves those not in `names` as they were exported."""
    compile_all = writer._compile

    def compile_some(graphs: Any, programs: Path, folder: Path, *rest: Any) -> Any:
        chosen = [graph for graph in graphs if graph.name in names]
        features = compile_all(chosen, programs, folder, *rest)
        for graph in graphs:
            if graph not in chosen:
                shutil.copy(programs / f"{graph.name}.pt2", folder)
        return features

    return compile_some


def partly_compiled(one: Twin, names: tuple[str, ...]) -> TorchEngine:
    """The engine of what `write_some` wrote."""
    graphs = read_graphs(one.folder / "aoti")
    weights = MappedWeights(
        one.folder / "weights", graphs.folder, getattr(torch, graphs.dtype), "cpu"
    )

    def load(graph: GraphFile) -> Any:
        if graph.path.stem in names:
            return AotiProgram(graph, weights)
        module = exported_module(graph, weights)
        return lambda inputs: list(module(*inputs))

    return TorchEngine("aoti", graphs, one.design, load)
