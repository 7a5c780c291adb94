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
    """With a row that is added, with a row for each, and with nothing."""

    def __init__(self, number: torch.dtype) -> None:
        super().__init__()
        self.first = torch.nn.Linear(DEPTH, COLUMNS, dtype=number)
        self.second = torch.nn.Linear(COLUMNS, COLUMNS, bias=False, dtype=number)
        self.third = torch.nn.Linear(COLUMNS, COLUMNS, bias=False, dtype=number)

    def forward(self, x: Tensor, out: Tensor) -> None:
        found = self.first(x)
        found = torch.addmm(found, found, self.second.weight.t())
        out.copy_(self.third(found))


def given(run: Any, *inputs: Tensor) -> list[int]:
    """Bytes of each block that torch's allocator gives."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run(*inputs)
    events: Any = found.profiler.kineto_results.events()
    return [size for event in events if event.name() == "[memory]" and (size := event.nbytes()) > 0]


def compiled(what: Any) -> Any:
    compiler: Any = torch
    options = {"cpp_wrapper": True, **kept_memory()}
    return compiler.compile(what, fullgraph=True, dynamic=True, options=options)


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_products_take_no_memory(number: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Products(number).requires_grad_(False)
    run = compiled(model.forward)
    for rows in (2, 3, 4, 5, 13, 32):
        x = torch.randn(rows, DEPTH).to(number)
        out, expected = torch.zeros(2, rows, COLUMNS, dtype=number)
        with quiet():
            run(x, out)
        model(x, expected)
        exact = 1e-5 if number is torch.float32 else 0.02
        torch.testing.assert_close(out, expected, atol=exact, rtol=exact)
        # By kernels of torch they would be equal.
        assert number is not torch.float32 or not torch.equal(out, expected)
        # torch.compile hands each extent that varies over as a tensor.
        assert max(given(lambda x=x, out=out: run(x, out)), default=0) <= 8


@pytest.mark.parametrize("rows", [300, 100_000])
@torch.inference_mode()
def test_a_view_of_what_torch_made_holds_it(rows: int) -> None:
    """The compiler gives a tensor back where another takes over its memory."""

    def turned(x: Tensor, weight: Tensor, out: Tensor) -> None:
        values = torch.sort(x, 1)[0]
        out.copy_(torch.mm(values.t().contiguous(), weight))

    torch.manual_seed(0)
    x, weight = torch.randn(16, rows), torch.randn(16, 16)
    out, expected = torch.zeros(2, rows, 16)
    turned(x, weight, expected)
    with quiet():
        compiled(turned)(x, weight, out)
    torch.testing.assert_close(out, expected)
