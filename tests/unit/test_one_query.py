"""Attention of one token over 16-bit keys and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vlmc.runtime.engines.one_query import SHARED_BY, widen_attention


class Body(torch.nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, mask, scale=0.3)


def given(number: torch.dtype, queries: int, seen: bool) -> tuple[Tensor, ...]:
    shapes = [(2, 3, queries, 8), (2, 3, 40, 8), (2, 3, 40, 8)]
    parts = [torch.randn(shape).to(number) for shape in shapes]
    mask = torch.rand(2, 1, queries, 40)
    return (*parts, mask > 0.4 if seen else mask.to(number))


def widened(inputs: tuple[Tensor, ...]) -> tuple[Any, int]:
    program: Any = torch.export.export(Body(), inputs)
    module = program.module()
    changed = widen_attention(module.graph)
    module.graph.lint()
    module.recompile()
    return module, changed


@pytest.mark.parametrize("number", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seen", [True, False])
def test_attention_of_a_step_is_computed_in_fp32(number: torch.dtype, seen: bool) -> None:
    inputs = given(number, 1, seen)
    module, changed = widened(inputs)
    assert changed == 1
    wide = [one.float() if one.is_floating_point() else one for one in inputs]
    found = module(*inputs)
    assert found.dtype is number
    assert torch.equal(found, Body()(*wide).to(number))


@pytest.mark.parametrize(
    ("number", "queries"), [(torch.float32, 1), (torch.bfloat16, SHARED_BY + 1)]
)
def test_other_attention_stays(number: torch.dtype, queries: int) -> None:
    inputs = given(number, queries, True)
    module, changed = widened(inputs)
    assert changed == 0
    assert torch.equal(module(*inputs), Body()(*inputs))
