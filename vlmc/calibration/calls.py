"""What a framework takes for each call of an operator, whatever the operator does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import checkpoint
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


def call_seconds() -> tuple[float, float, float]:
    """Of a call on the processor: blocks of a transformer so narrow that their work is nothing, run
    forward and backward, over the calls in them. Views, autograd and Python are in it. Then what
    a call of the forward pass takes more when checkpointing runs it again, over its own time, and
    what a call takes in inference mode."""
    with torch.enable_grad():
        blocks = [_block() for _ in range(BLOCKS)]
        x = torch.randn(1, 2, WIDTH, requires_grad=True)
        again_through: Any = getattr(checkpoint, "checkpoint")  # noqa: B009 (untyped)
        options = {"use_reentrant": False, "preserve_rng_state": False}

        def forward(turn: int) -> Any:
            hidden: Any = x
            for block in blocks:
                hidden = block(hidden)
            return hidden

        def step(turn: int) -> None:
            forward(turn).sum().backward()

        def again(_: int) -> None:
            hidden: Any = x
            for block in blocks:
                hidden = again_through(block, hidden, **options)
            hidden.sum().backward()

        once, twice, alone = (seconds(one, "cpu") for one in (step, again, forward))
        # What nothing reads in the backward pass does not run again.
        calls = _count(again) - _count(step)
        hooks = (twice - once) / calls - alone / _count(forward)
        with torch.inference_mode():
            serving = seconds(forward, "cpu") / _count(forward)
        return once / _count(step), max(0.0, hooks), serving


def _count(work: Callable[[int], object]) -> int:
    with _Counted() as counted:
        work(0)
    return counted.calls


def _block() -> TransformerBlock:
    return TransformerBlock(
        width=WIDTH, heads=2, kv_heads=2, head_dim=8, hidden=WIDTH, norm="layer", norm_eps=1e-5,
        pre_norm=True, activation="gelu", gated=False, qkv_bias=True, output_bias=True,
        mlp_bias=True,
    )  # fmt: skip
