"""The engine of a build folder by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlmc.builder.located import located
from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.amounts import check_threads
from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.engines.names import ENGINES, check_engine


def open_engine(
    folder: Path,
    name: str,
    design: Design,
    *,
    threads: int | None = None,
    blocks: int | None = None,
    backend: str = "inductor",
    report: Callable[[str], None] = lambda _: None,
) -> Engine:
    """The engine `name` of the build in `folder`, which computes in `threads` (None: as many as its
    package takes). With `blocks` the key/value caches of all its generations lie in that many
    blocks of one pool, for compile alone. `report` is told what takes long; `backend` is that of
    torch.compile.

    Raises UsageError where there is no such engine or the build lacks its graphs, EnvironmentFault
    where a file is damaged or this machine cannot run it.
    """
    check_engine(name)
    artifact, _, quantised = name.partition("-")
    if name != "eager" and not (folder / artifact).is_dir():
        there = [one for one in ENGINES if (folder / one).is_dir()]
        wanted = ",".join(("model", *(one for one in ENGINES if one in (*there, artifact))))
        quantise = f" --quantize {quantised}" * bool(quantised)
        raise UsageError(
            f"{folder} has no artifact for --engine {name}: `vlmc build {folder} --artifacts "
            f"{wanted}{quantise}` makes it; there is --engine {', '.join(('eager', *there))}"
        )
    if blocks is not None and name != "compile":
        raise UsageError(
            f"a paged key/value cache (blocks) is for --engine eager and compile, not for {name}"
        )
    if threads is not None:
        check_threads(threads)
    if artifact != "onnx" and threads is not None:
        _limit_torch(threads)
    if name == "eager":
        return _eager(folder, design)
    if artifact == "onnx":
        from vlmc.runtime.engines.onnx_engine import OnnxEngine

        return OnnxEngine(
            folder / "onnx",
            serving=design.serving,
            start_token=design.start_token,
            variant=quantised or None,
            threads=threads,
        )
    return _graphs(folder, name, design, blocks, backend, report)


def _limit_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _graphs(
    folder: Path,
    name: str,
    design: Design,
    blocks: int | None,
    backend: str,
    report: Callable[[str], None],
) -> Engine:
    import torch

    from vlmc.runtime.engines.aoti_program import AotiProgram, check_machine
    from vlmc.runtime.engines.compiled_program import CompiledProgram
    from vlmc.runtime.engines.graph_files import read_graphs
    from vlmc.runtime.engines.mapped_weights import MappedWeights
    from vlmc.runtime.engines.torch_engine import TorchEngine

    graphs = read_graphs(folder / name)
    if name == "aoti":
        check_machine(graphs)
    dtype = getattr(torch, graphs.dtype)
    weights = MappedWeights(folder / "weights", folder / name, dtype, graphs.place)
    if name == "aoti":
        return TorchEngine(name, graphs, design, lambda graph: AotiProgram(graph, weights))
    return TorchEngine(
        name, graphs, design, lambda graph: CompiledProgram(graph, weights, backend, report), blocks
    )


def _eager(folder: Path, design: Design) -> Engine:
    """The model of the build's own model.py, with its weights."""
    import importlib.util
    import sys

    import torch

    from vlmc.runtime.engines.eager_engine import EagerEngine

    path = folder / "model.py"
    described = importlib.util.spec_from_file_location(f"model_of_{folder.name}", path)
    if described is None or described.loader is None or not path.is_file():
        raise UsageError(f"{folder} holds no model.py; build it")
    module = importlib.util.module_from_spec(described)
    sys.modules[described.name] = module  # where its dataclasses look for their module
    described.loader.exec_module(module)
    with torch.device("meta"):
        model = module.build()
    located(folder / "weights")  # says what is wrong with files that are damaged
    module.load_weights(model, folder / "weights")
    return EagerEngine(model.eval().requires_grad_(False), design)
