"""Attention of one token as sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vlmc.runtime.engines.one_query import SHARED_BY, sum_attention


class Body(torch.nn.Module):
    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.scale = scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        return scaled_dot_product_attention(query, key, value, mask, scale=self.scale)


def given(number: torch.dtype, queries: int, mask: str) -> tuple[Tensor, ...]:
    shapes = [(2, 3, queries, 8), (2, 3, 40, 8), (2, 3, 40, 8)]
    parts = [torch.randn(shape).to(number) for shape in shapes]
    seen = torch.rand(2, 1, queries, 40) > 0.4
    seen[0, 0, 0] = False
    if mask == "seen":
        return (*parts, seen)
    added = torch.randn(2, 3, queries, 40).masked_fill(~seen, float("-inf"))
    return (*parts, added.to(number)) if mask == "added" else tuple(parts)


def as_sums(body: Body, inputs: tuple[Tensor, ...]) -> tuple[Any, int]:
    program: Any = torch.export.export(body, inputs)
    module = program.module()
    changed = sum_attention(module.graph)
    module.graph.lint()
    module.recompile()
    return module, changed


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("queries", [1, SHARED_BY])
@pytest.mark.parametrize("mask", ["none", "seen", "added"])
def test_attention_of_a_step_is_sums(number: torch.dtype, queries: int, mask: str) -> None:
    """The first query sees nothing where there is a mask."""
    inputs = given(number, queries, mask)
    body = Body(0.3 if mask == "seen" else None)
    module, changed = as_sums(body, inputs)
    assert changed == 1
    assert not [node for node in module.graph.nodes if "attention" in node.name]
    wide = [one.float() if one.is_floating_point() else one for one in inputs]
    found, expected = module(*inputs), body(*wide).to(number)
    assert found.dtype is number
    assert mask == "none" or not expected[0, :, 0].any()
    # As it is, and not compiled, the graph rounds each product to 16 bits.
    near = 1e-5 if number is torch.float32 else 0.02
    torch.testing.assert_close(found, expected, atol=near, rtol=near)


def test_other_attention_stays() -> None:
    inputs = given(torch.float32, SHARED_BY + 1, "seen")
    module, changed = as_sums(Body(None), inputs)
    assert changed == 0
    assert torch.equal(module(*inputs), Body(None)(*inputs))


class Asked(torch.nn.Module):
    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.how = how

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, **self.how)


@pytest.mark.parametrize("how", ["is_causal", "enable_gqa"])
def test_attention_that_sums_have_no_part_in_stays(how: str) -> None:
    program: Any = torch.export.export(Asked(**{how: True}), given(torch.float32, 1, "none"))
    module = program.module()
    assert sum_attention(module.graph) == 0
