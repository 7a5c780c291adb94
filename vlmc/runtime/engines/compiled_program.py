"""Exported programs, compiled by torch.compile when they are first used."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlmc.diagnostics.faults import EnvironmentFault
from vlmc.passes.stored import STORED
from vlmc.runtime.engines.graph_files import GraphFile
from vlmc.runtime.engines.kept_memory import kept_memory
from vlmc.runtime.engines.mapped_weights import MappedWeights
from vlmc.runtime.engines.one_query import sum_attention
from vlmc.runtime.engines.plain_archive import check_plain

STEP: dict[str, Any] = {"cpp_wrapper": True}
"""Options for a step: what calls its kernels is compiled, too. Else Python does, one by one, which
takes as long as some of them."""
SINGLE_ROW: dict[str, Any] = {**STEP, **STORED}
"""Options for a step of a single row, whose products are sums over what must lie in memory."""


class CompiledProgram:
    """A graph that torch.compile compiles at its first call, and again where an extent that varies
    is 1 for the first time, or for the first time is not."""

    def __init__(
        self,
        graph: GraphFile,
        weights: MappedWeights,
        backend: str,
        report: Callable[[str], None],
    ) -> None:
        self.report = report
        self.name = graph.path.stem
        module = exported_module(graph, weights)
        if weights.device == "cpu" and is_step(self.name) and sum_attention(module.graph):
            module.recompile()
        self.seen: set[tuple[bool, ...]] = set()
        # Which axes of which inputs vary; all else is as it was declared.
        self.varying = [
            (place, axis)
            for place, wire in enumerate(graph.inputs)
            for axis, extent in enumerate(wire.dims)
            if isinstance(extent, str)
        ]
        self.run = module
        self.compiled = self.name != "embed"
        if self.compiled:  # looking words up is one call as it is
            compiler: Any = torch
            chosen = _compiler_options(self.name, weights.device) if backend == "inductor" else None
            # Not the module: it looks at each input in Python before each call.
            self.run = compiler.compile(
                module.forward, fullgraph=True, dynamic=False, backend=backend, options=chosen
            )

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        several = tuple(inputs[place].shape[axis] > 1 for place, axis in self.varying)
        if several in self.seen or not self.compiled:
            return list(self.run(*inputs))
        self.report(f"compiling {self.name}")
        self.seen.add(several)
        dynamo: Any = torch._dynamo  # pyright: ignore[reportPrivateUsage]
        for (place, axis), more in zip(self.varying, several, strict=True):
            if more:
                dynamo.maybe_mark_dynamic(inputs[place], axis)
        with quiet():
            return list(self.run(*inputs))


def _compiler_options(name: str, device: str) -> dict[str, Any] | None:
    """What the compiler is told of the graph `name` for a device beyond its defaults."""
    if not is_step(name):
        return None
    kept = kept_memory() if device == "cpu" else {}
    return {**(SINGLE_ROW if name == "decode_one" else STEP), **kept}


def is_step(name: str) -> bool:
    """Whether the graph of this name is that of a step."""
    return "decode" in name


def exported_module(graph: GraphFile, weights: MappedWeights) -> Any:
    """The exported program of `graph` as a module over the build's weights. Raises EnvironmentFault
    where this torch cannot read it, or reading it would run what it holds."""
    try:
        check_plain(graph.path)
        with quiet():
            program: Any = torch.export.load(graph.path)
            module: Any = program.module(check_guards=False)
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnvironmentFault(
            f"{graph.path}: this torch ({torch.__version__}) cannot read it ({reason}); "
            "build it again"
        ) from None
    values = weights.constants(graph)
    module.load_state_dict(
        {name: torch.nn.Parameter(value, requires_grad=False) for name, value in values.items()},
        assign=True,
    )
    return module


@contextmanager
def quiet() -> Generator[None]:
    """Without what torch's compiler says of torch's own code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        yield
