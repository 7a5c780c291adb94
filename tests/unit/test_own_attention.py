"""Attention of many queries in a graph that is compiled ahead of time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention

from vlmc.emit.torch_graphs.attention import attentions, own_attention
from vlmc.runtime.engines.compiled_program import quiet

SCALE = 0.3


class Attention(torch.nn.Module):
    """Heads of [batch, rows, heads * numbers] as they lie in a layer, each in memory of its own, or
    of one projection for all; of all keys, of those up to the query's own, of those that a mask
    shows."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> list[Tensor]:
        whole = torch.cat([query, query * 2, query * 3], -1).unflatten(-1, (3, self.heads, -1))
        parts = [one.transpose(1, 2) for one in whole.unbind(2)]
        split = [one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (query, key, value)]
        apart = [one.contiguous() for one in split]
        found = (
            attention(*split),
            attention(*apart),
            attention(*parts),
            attention(*split, is_causal=True),
            attention(*apart, mask, scale=SCALE),
        )
        return [one.transpose(1, 2).flatten(2) for one in found]


def compiled(model: Attention, *inputs: Tensor) -> Any:
    assert attentions(torch.export.export(model, inputs).graph) == 5
    options = {"cpp_wrapper": True, **own_attention()}
    compiler: Any = torch
    compiler._dynamo.reset()
    return compiler.compile(model.forward, fullgraph=True, dynamic=True, options=options)


def drawn(batch: int, rows: int, keys: int, width: int, number: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and a mask."""
    shapes = ((batch, rows, width), (batch, keys, width), (batch, keys, width))
    drawn = [torch.randn(shape).to(number) for shape in shapes]
    return [*drawn, hidden(batch, rows, keys).to(number)]


def hidden(batch: int, rows: int, keys: int) -> Tensor:
    """A mask by which the last keys are hidden from all, some from some, all from one query."""
    mask = torch.where(torch.rand(batch, 1, rows, keys) > 0.3, 0.0, float("-inf"))
    mask[:, :, :, -7:] = float("-inf")
    mask[0, 0, 1] = float("-inf")
    return mask


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_attention_is_that_of_torch(number: torch.dtype) -> None:
    torch.manual_seed(0)
    heads = 3
    model = Attention(heads)
    run: Any = None
    inputs: list[Tensor] = []
    found: list[Tensor] = []
    for batch, rows, keys in ((2, 13, 40), (3, 40, 13), (2, 2, 9), (2, 70, 70)):
        inputs = drawn(batch, rows, keys, heads * 20, number)
        with quiet():
            run = run or compiled(model, *inputs)
            found = run(*inputs)
        exact = 1e-5 if number is torch.float32 else 2e-2
        for one, expected in zip(found, model(*(each.float() for each in inputs)), strict=True):
            torch.testing.assert_close(one.float(), expected, atol=exact, rtol=exact)
    # torch's kernel, which eager calls, rounds otherwise.
    assert not any(map(torch.equal, found, model(*inputs)))


@torch.inference_mode()
def test_what_the_kernel_does_not_know_is_left_to_torch() -> None:
    """Numbers of 64 bits."""
    torch.manual_seed(0)
    model = Attention(2)
    inputs = drawn(2, 5, 6, 16, torch.float64)
    with quiet():
        found = compiled(model, *inputs)(*inputs)
    assert all(map(torch.equal, found, model(*inputs)))
