"""Products of matrices in a compiled step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vlmc.runtime.engines.compiled_program import quiet
from vlmc.runtime.engines.kept_memory import kept_memory

DEPTH, COLUMNS = 75, 39


class Products(torch.nn.Module):
    """One with what is added to it and one without."""

    def __init__(self, number: torch.dtype) -> None:
        super().__init__()
        self.first = torch.nn.Linear(DEPTH, COLUMNS, dtype=number)
        self.second = torch.nn.Linear(COLUMNS, COLUMNS, bias=False, dtype=number)

    def forward(self, x: Tensor, out: Tensor) -> None:
        out.copy_(self.second(self.first(x)))


def given(run: Any, *inputs: Tensor) -> list[int]:
    """Bytes of each block that torch's allocator gives."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run(*inputs)
    events: Any = found.profiler.kineto_results.events()
    return [size for event in events if event.name() == "[memory]" and (size := event.nbytes()) > 0]


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_products_take_no_memory(number: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Products(number).requires_grad_(False)
    compiler: Any = torch
    options = {"cpp_wrapper": True, **kept_memory()}
    run = compiler.compile(model.forward, fullgraph=True, dynamic=True, options=options)
    for rows in (2, 3, 4, 5, 13, 32):
        x = torch.randn(rows, DEPTH).to(number)
        out = torch.zeros(rows, COLUMNS, dtype=number)
        with quiet():
            run(x, out)
        expected = model.second(model.first(x))
        exact = 1e-5 if number is torch.float32 else 0.01
        torch.testing.assert_close(out, expected, atol=exact, rtol=exact)
        # torch.compile hands each extent that varies over as a tensor.
        assert max(given(lambda x=x, out=out: run(x, out)), default=0) <= 8
