"""The values of a captured graph's constants, and the graph run with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter

from vlmc.capture.graph import Constant, Graph, Stored


def value(constant: Constant, weights: Mapping[str, Tensor]) -> Tensor:
    """The values of a constant, from those of the model's weights by name."""
    parts = [weights[part].detach() for part in constant.parts]
    if isinstance(constant, Stored):
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    with torch.no_grad():
        return constant.compute(*parts)


def run(graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What a graph gives, node by node in eager torch. It writes into `inputs` where the graph
    does."""
    program: Any = graph.program
    constants = [
        value(graph.constants[spec.target], weights)
        for spec in program.graph_signature.input_specs
        if spec.target is not None
    ]
    with torch.no_grad():
        return list(Interpreter(program.graph_module).run(*constants, *inputs))
