"""Inputs for captured graphs, and the graphs of the twins."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from tests.conftest import ROOT
from vlmc.builder.values import valued
from vlmc.capture.capture import capture
from vlmc.capture.graph import Graph, Wire
from vlmc.capture.stages import CacheKind
from vlmc.ir import Arch
from vlmc.pipeline import load_spec, resolve

EXTENTS = {"batch": 2, "images": 2, "frames": 3, "text": 5, "source": 7, "past": 6, "slots": 6}


@cache
def twin(spec: str) -> Arch:
    return resolve(load_spec(ROOT / "specs" / f"{spec}.yaml"), mini=True)


@cache
def graphs(spec: str, kind: CacheKind) -> dict[str, Graph]:
    """The graphs of a spec's twin by name."""
    return {graph.name: graph for graph in capture(twin(spec), cache=kind)}


@cache
def weights(spec: str) -> dict[str, Tensor]:
    """Seeded weights of a spec's twin, none of them 0 or 1 throughout."""
    model: nn.Module = valued(twin(spec))
    torch.manual_seed(0)
    return {
        name: parameter.detach() + 0.05 * torch.randn_like(parameter)
        for name, parameter in model.named_parameters()
    }


def inputs(spec: str, graph: Graph, *, seed: int = 0) -> list[Tensor]:
    """Inputs for a graph: two rows unlike in length where it takes two."""
    random = torch.Generator().manual_seed(seed)
    tokens = twin(spec).tokens.per_image
    extents = {**EXTENTS, "total": EXTENTS["past"] + EXTENTS["text"], "visual": 2 * tokens}
    return [_tensor(wire, extents, random) for wire in graph.inputs]


def _tensor(wire: Wire, extents: dict[str, int], random: torch.Generator) -> Tensor:
    shape = [dim if isinstance(dim, int) else extents[dim] for dim in wire.dims]
    if wire.name == "positions":
        return torch.tensor([[3], [5]])[-shape[0] :]
    if wire.name == "last":
        return torch.tensor([2, 4])
    if wire.name == "slots":
        return torch.arange(shape[0])
    if wire.name == "attention_mask":
        mask = torch.ones(shape, dtype=torch.int64)
        mask[0, 0] = 0
        return mask
    if "mask" in wire.name:
        mask = torch.ones(shape, dtype=torch.int64)
        mask[0, -1] = 0
        return mask
    if wire.number == "bool":
        return torch.rand(shape, generator=random) > 0.4
    if wire.number == "int":
        return torch.randint(0, 50, shape, generator=random)
    return torch.randn(shape, generator=random)
