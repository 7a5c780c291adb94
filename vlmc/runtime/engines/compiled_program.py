"""Exported programs, compiled by torch.compile when they are first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vlmc.diagnostics.faults import EnvironmentFault
from vlmc.runtime.engines.graph_files import GraphFile
from vlmc.runtime.engines.mapped_weights import MappedWeights


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
        try:
            program: Any = torch.export.load(graph.path)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise EnvironmentFault(
                f"{graph.path}: this torch ({torch.__version__}) cannot read it ({reason}); "
                "build it again"
            ) from None
        module: Any = program.module(check_guards=False)
        values = weights.constants(graph)
        module.load_state_dict(
            {
                name: torch.nn.Parameter(value, requires_grad=False)
                for name, value in values.items()
            },
            assign=True,
        )
        self.report = report
        self.name = graph.path.stem
        self.seen: set[tuple[bool, ...]] = set()
        # Which axes of which inputs vary; all else is as it was declared.
        self.varying = [
            (place, axis)
            for place, wire in enumerate(graph.inputs)
            for axis, extent in enumerate(wire.dims)
            if isinstance(extent, str)
        ]
        compiler: Any = torch
        self.run = compiler.compile(module, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        several = tuple(inputs[place].shape[axis] > 1 for place, axis in self.varying)
        if several not in self.seen:
            self.seen.add(several)
            self.report(f"compiling {self.name}")
        dynamo: Any = torch._dynamo  # pyright: ignore[reportPrivateUsage]
        for (place, axis), more in zip(self.varying, several, strict=True):
            if more:
                dynamo.maybe_mark_dynamic(inputs[place], axis)
        return list(self.run(*inputs))
