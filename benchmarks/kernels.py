"""Times vlmc's kernels for CPUs beside those that torch's compiler calls in their place.

    python benchmarks/kernels.py [--rounds 9] [--threads 2]

Products: a batch's rows with matrices of a language model, more of them than a cache holds.
Attention: an image of CLIP ViT-B/16 and of ViT-L/14 at 336 pixels, a prompt of 7B. Each is compiled
twice, with vlmc's options and without; both run in turn, and the figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vlmc.emit.torch_graphs.attention import own_attention
from vlmc.runtime.engines.compiled_program import quiet
from vlmc.runtime.engines.kept_memory import kept_memory

WIDTH, HIDDEN, LAYERS = 768, 3072, 24
ROWS = (2, 3, 8, 16, 32, 64)
ATTENTION = {
    "attention of ViT-B/16": (1, 197, 12, 64, False),
    "attention of ViT-L/14, 336 pixels": (1, 577, 16, 64, False),
    "attention of 7B, a prompt of 640": (1, 640, 32, 128, True),
}
"""Batch, tokens, heads, numbers of a head; whether a token sees those before it alone."""
NUMBERS = (torch.float32, torch.bfloat16)


class Stack(nn.Module):
    """Up and down, `LAYERS` times."""

    def __init__(self, number: torch.dtype) -> None:
        super().__init__()
        pair = ((WIDTH, HIDDEN), (HIDDEN, WIDTH))
        made = [nn.Linear(*each, bias=False, dtype=number) for each in pair * LAYERS]
        self.layers = nn.ModuleList(made)

    def forward(self, x: Tensor, out: Tensor) -> None:
        for layer in self.layers:
            x = layer(x)
        out.copy_(x)


def attended(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    found = scaled_dot_product_attention(query, key, value, is_causal=causal)
    return found.transpose(1, 2).flatten(2)


def medians(
    what: Callable[..., Any], options: dict[str, Any], inputs: Sequence[Any], rounds: int
) -> dict[str, float]:
    """Milliseconds with torch's kernels and with vlmc's, which `options` bring."""
    compiler: Any = torch
    runs: dict[str, Any] = {}
    spent: dict[str, list[float]] = {"torch": [], "vlmc": []}
    compiler._dynamo.reset()
    for name, more in (("torch", {}), ("vlmc", options)):
        run = compiler.compile(what, fullgraph=True, options={"cpp_wrapper": True, **more})
        with quiet():
            run(*inputs)
        runs[name] = run
    for _ in range(rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run(*inputs)
            spent[name].append((time.perf_counter() - begin) * 1e3)
    return {name: statistics.median(each) for name, each in spent.items()}


def row(name: str, number: torch.dtype, found: dict[str, float]) -> None:
    """A line of the table."""
    numbers = (found["torch"], found["vlmc"], found["torch"] / found["vlmc"])
    cells = " | ".join(f"{one:.2f}" for one in numbers)
    print(f"| {name} | {str(number).removeprefix('torch.')} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print("| | format | torch, ms | vlmc, ms | times as fast |\n|---|---|---:|---:|---:|")
    with torch.inference_mode():
        for number in NUMBERS:
            model = Stack(number)
            for rows in ROWS:
                inputs = [torch.randn(rows, WIDTH).to(number) for _ in range(2)]
                found = medians(model.forward, kept_memory(), inputs, given.rounds)
                row(f"products of {rows} rows", number, found)
            for name, (*shape, causal) in ATTENTION.items():
                inputs = [torch.randn(shape).to(number).transpose(1, 2) for _ in range(3)]
                found = medians(attended, own_attention(), (*inputs, causal), given.rounds)
                row(name, number, found)


if __name__ == "__main__":
    main()
