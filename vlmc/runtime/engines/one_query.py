"""Attention of one token over keys and values of 16 bits, computed in fp32 on CPUs.

torch's kernel for a CPU packs keys and values of 16 bits anew for its products of matrices, at each
call. For the one query of a step that takes several times as long as making fp32 of them and
reading that.
"""

from __future__ import annotations

from functools import partial
from operator import is_not
from typing import Any

import torch

SHARED_BY = 16
"""Queries of one key at most: as many as query heads share it in a step."""


def widen_attention(graph: Any) -> int:
    """Has attention of one token in a torch.fx graph computed in fp32; how often there was any."""
    aten: Any = torch.ops.aten
    changed = 0
    for node in list(graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default or not _of_a_step(node):
            continue
        number = node.meta["val"].dtype

        def wide(one: Any, node: torch.fx.Node = node) -> Any:
            if not isinstance(one, torch.fx.Node) or not one.meta["val"].is_floating_point():
                return one
            with graph.inserting_before(node):
                return _in_format(graph, one, torch.float32)

        node.args = tuple(wide(one) for one in node.args)
        node.kwargs = {name: wide(one) for name, one in node.kwargs.items()}
        node.meta["val"] = node.meta["val"].float()
        with graph.inserting_after(node):
            narrow = _in_format(graph, node, number)
        node.replace_all_uses_with(narrow, partial(is_not, narrow))
        changed += 1
    return changed


def _of_a_step(attention: torch.fx.Node) -> bool:
    query: Any = attention.args[0]
    value = query.meta["val"]
    rows = value.shape[2]
    return value.dtype.itemsize == 2 and isinstance(rows, int) and rows <= SHARED_BY


def _in_format(graph: Any, one: torch.fx.Node, number: torch.dtype) -> torch.fx.Node:
    aten: Any = torch.ops.aten
    made: torch.fx.Node = graph.call_function(aten.to.dtype, (one, number))
    made.meta["val"] = one.meta["val"].to(number)
    return made
