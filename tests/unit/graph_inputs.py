"""Inputs for captured graphs, and the graphs of the twins."""

from __future__ import annotations

from collections.abc import Mapping
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

EXTENTS = {
    "batch": 2,
    "images": 2,
    "frames": 3,
    "text": 5,
    "source": 7,
    "past": 6,
    "slots": 6,
    "pool": 40,
}


FIXED = {
    "positions": torch.tensor([[3], [5]]),
    "last": torch.tensor([2, 4]),
    "slots": torch.arange(EXTENTS["slots"]),
}


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


def _tensor(wire: Wire, extents: Mapping[str, int], random: torch.Generator) -> Tensor:
    shape = [dim if isinstance(dim, int) else extents[dim] for dim in wire.dims]
    if wire.name in FIXED:
        return FIXED[wire.name][-shape[0] :]
    if wire.name == "table":  # blocks of the pool; no two rows share the first, which is read
        return 1 + torch.arange(shape[0] * shape[1]).reshape(shape) % (EXTENTS["pool"] - 1)
    if "mask" in wire.name:
        mask = torch.ones(shape, dtype=torch.int64)
        mask[0, 0 if wire.name == "attention_mask" else -1] = 0
        return mask
    drawn = torch.randn(shape, generator=random)
    if wire.number == "int":
        return (drawn.abs() * 20).long()
    return drawn > -0.3 if wire.number == "bool" else drawn
