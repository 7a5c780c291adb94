"""A product of a matrix with a single row becomes a sum of products.

At batch 1 a step of decoding reads every weight once and multiplies it once, so that memory is its
limit. The matrix routines are made for many rows and reach a third of the memory's speed; a sum
that inductor generates reads at nearly all of it (PyTorch team, 2023, "Accelerating Generative AI
with PyTorch II: GPT, Fast", does the same on GPUs).

What such a product reads must lie in memory: else inductor computes the norm before it anew for
every row of the matrix. `stored` says so to the compiler. A sum of very many products is one of
partial sums: else inductor sets up an exact summation in memory of its own, for every row again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import counted

aten: Any = torch.ops.aten

MOST = 4096
"""Products of one sum for which inductor needs no memory (`need_use_acc_helper` in its cpp.py)."""


def single_row(draft: Draft) -> str:
    changed = 0
    for linear in draft.calls(aten.linear.default):
        source, weight = linear.args[:2]
        if not isinstance(source, Node) or not isinstance(weight, Node):
            continue
        extents: list[Any] = list(tensor(source).shape[:-1])
        if any(str(extent) != "1" for extent in extents):
            continue
        with draft.before(linear) as call:
            rows, width = tensor(weight).shape
            parts = _parts(width)
            row = call(aten.reshape.default, source, [1, *parts])
            if len(parts) > 1:
                weight = call(aten.reshape.default, weight, [rows, *parts])
            result = call(aten.mul.Tensor, row, weight)
            number = tensor(weight).dtype
            # Partial sums of 16 bits would be rounded, and overflow where the whole does not.
            wide = {"dtype": torch.float32} if len(parts) > 1 and number.itemsize == 2 else {}
            for _ in parts:
                result = call(aten.sum.dim_IntList, result, [-1], **wide)
            if wide:
                result = call(aten.to.dtype, result, number)
            if len(linear.args) > 2 and linear.args[2] is not None:
                result = call(aten.add.Tensor, result, linear.args[2])
            result = call(aten.reshape.default, result, [*extents, rows])
        draft.replace(linear, result)
        draft.nodes.erase_node(linear)
        changed += 1
    return f"{counted(changed, 'product')} with a single row written as a sum" if changed else ""


def _parts(width: int) -> list[int]:
    """How many sums there are and of how many products, for as many as `width`; or one of all."""
    if width > MOST:
        for count in range(2, width // 16):
            if width % count == 0 and width // count <= MOST:
                return [count, width // count]
    return [width]
