"""A product of a matrix with a single row becomes a sum of products.

At batch 1 a step of decoding reads every weight once and multiplies it once, so that memory is its
limit. The matrix routines are made for many rows and reach a third of the memory's speed; a sum
that inductor generates reads at nearly all of it (PyTorch team, 2023, "Accelerating Generative AI
with PyTorch II: GPT, Fast", does the same on GPUs).

What such a product reads must lie in memory: else inductor computes the norm before it anew for
every row of the matrix. `stored` says so to the compiler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import counted

aten: Any = torch.ops.aten


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
            row = call(aten.reshape.default, source, [1, tensor(source).shape[-1]])
            products = call(aten.mul.Tensor, row, weight)
            result = call(aten.sum.dim_IntList, products, [-1])
            if len(linear.args) > 2 and linear.args[2] is not None:
                result = call(aten.add.Tensor, result, linear.args[2])
            result = call(aten.reshape.default, result, [*extents, tensor(weight).shape[0]])
        draft.replace(linear, result)
        draft.nodes.erase_node(linear)
        changed += 1
    return f"{counted(changed, 'product')} with a single row written as a sum" if changed else ""
