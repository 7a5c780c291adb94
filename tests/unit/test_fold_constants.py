"""Constants that follow from weights alone, one of them from another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.unit.graph_compare import run
from vlmc.capture.graph import Folded, Graph, Stored
from vlmc.capture.values import value
from vlmc.passes.fold_constants import fold_constants
from vlmc.passes.pipeline import apply


class Body(nn.Module):
    """Reads a folded result, and another that is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x: Tensor) -> Tensor:
        near = self.gate.tanh()
        return x * near + (near * 2 + 1) * x.sin()


def test_a_constant_that_follows_from_another() -> None:
    body = Body().eval().requires_grad_(False)
    program: Any = torch.export.export(body, (torch.ones(2),))
    parts = {"gate": Stored(parts=("gate",))}
    graph = Graph(name="one", program=program, inputs=(), outputs=(), bounds={}, constants=parts)
    after = apply(graph, [fold_constants])
    weights = {"gate": body.gate.detach()}
    folded = [one for one in after.constants.values() if isinstance(one, Folded)]
    gate = weights["gate"]
    assert len(after.constants) == len(folded) == 2
    torch.testing.assert_close(
        [value(one, weights) for one in folded], [gate.tanh(), gate.tanh() * 2 + 1]
    )
    x = torch.tensor([0.4, 1.5])
    torch.testing.assert_close(run(after, weights, [x])[0], body(x))
