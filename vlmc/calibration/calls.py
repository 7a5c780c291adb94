"""What a framework takes for each call of an operator, whatever the operator does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlmc.analysis.operators import Memory
from vlmc.calibration.timing import seconds
from vlmc.components.shared.block import TransformerBlock

WIDTH, BLOCKS = 16, 4


class _Counted(TorchDispatchMode):
    """Counts what runs within it, views left out."""

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.calls = 0
        self._memory = Memory()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls += not self._memory.is_view(func)
        return func(*args, **(kwargs or {}))


def call_seconds() -> float:
    """Of a call on the processor: blocks of a transformer so narrow that their work is nothing, run
    forward and backward, over the calls in them. Views, autograd and Python are in it."""
    with torch.enable_grad():
        blocks = nn.Sequential(*(_block() for _ in range(BLOCKS)))
        x = torch.randn(1, 2, WIDTH, requires_grad=True)

        def step(_: int) -> None:
            blocks.zero_grad()
            blocks(x).sum().backward()

        step(0)
        with _Counted() as counted:
            step(0)
        return seconds(step, "cpu") / counted.calls


def _block() -> TransformerBlock:
    return TransformerBlock(
        width=WIDTH, heads=2, kv_heads=2, head_dim=8, hidden=WIDTH, norm="layer", norm_eps=1e-5,
        pre_norm=True, activation="gelu", gated=False, qkv_bias=True, output_bias=True,
        mlp_bias=True,
    )  # fmt: skip
