"""Attention of many queries in a graph that is compiled ahead of time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.profiler import ProfilerActivity, profile

from vlmc.emit.torch_graphs.attention import attentions, own_attention
from vlmc.runtime.engines.compiled_program import quiet

SCALE = 0.3


class Attention(torch.nn.Module):
    """[batch, rows, heads * numbers] as a layer has them: of all keys, of those up to the query's
    own, of those that a mask shows."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> list[Tensor]:
        split = [one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (query, key, value)]
        found = (
            attention(*split),
            attention(*split, is_causal=True),
            attention(*split, mask, scale=SCALE),
        )
        return [one.transpose(1, 2).flatten(2) for one in found]


def compiled(model: Attention, *inputs: Tensor) -> Any:
    assert attentions(torch.export.export(model, inputs).graph) == 3
    options = {"cpp_wrapper": True, **own_attention()}
    compiler: Any = torch
    compiler._dynamo.reset()
    return compiler.compile(model.forward, fullgraph=True, dynamic=True, options=options)


def drawn(
    batch: int, rows: int, keys: int, depth: int, width: int, number: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((batch, rows, depth), (batch, keys, depth), (batch, keys, width))
    query, key, value = (torch.randn(shape).to(number) for shape in shapes)
    return query, key, value


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
    inputs: tuple[Tensor, ...] = ()
    for batch, rows, keys in ((2, 13, 40), (3, 40, 13), (2, 70, 70), (2, 2, 9)):
        query, key, value = drawn(batch, rows, keys, heads * 20, heads * 36, number)
        inputs = (query, key, value, hidden(batch, rows, keys).to(number))
        with quiet():
            run = run or compiled(model, *inputs)
            found = run(*inputs)
        exact = 1e-5 if number is torch.float32 else 2e-2
        for one, expected in zip(found, model(*(each.float() for each in inputs)), strict=True):
            torch.testing.assert_close(one.float(), expected, atol=exact, rtol=exact)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run(*inputs)
    assert not [event.key for event in seen.key_averages() if "attention" in event.key]


@torch.inference_mode()
def test_what_the_kernel_does_not_know_is_left_to_torch() -> None:
    """Numbers of 64 bits."""
    torch.manual_seed(0)
    model = Attention(2)
    inputs = (*drawn(2, 5, 6, 16, 16, torch.float64), hidden(2, 5, 6).double())
    with quiet():
        found = compiled(model, *inputs)(*inputs)
    for one, expected in zip(found, model(*inputs), strict=True):
        torch.testing.assert_close(one, expected)
