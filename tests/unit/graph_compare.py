"""A captured graph run, and whether two forms of it compute the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter

from vlmc.capture.graph import Graph
from vlmc.capture.values import value


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
        given = Interpreter(program.graph_module).run(*constants, *inputs)
    return [one for one in given if one is not None]


def compare(
    before: Graph, after: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> float:
    """The largest difference between what two graphs give, or write into their inputs, as a share
    of the largest value of that tensor. NaN where either has one."""
    was, now = ([one.clone() for one in inputs] for _ in range(2))
    first = [*run(before, weights, was), *was]
    second = [*run(after, weights, now), *now]
    shares = [_share(*pair) for pair in zip(first, second, strict=True) if pair[0].numel() > 0]
    return math.nan if any(map(math.isnan, shares)) else max(shares, default=0.0)


def _share(one: Tensor, other: Tensor) -> float:
    gap = float((one.double() - other.double()).abs().max())
    return gap / max(1.0, float(one.double().abs().max()))
