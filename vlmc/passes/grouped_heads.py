"""Attention with grouped heads reads each key and value once.

As written, keys and values are repeated for every query head of a group (Ainslie et al., 2023,
GQA), a copy of the cache at each step. Where there is one query, those of a group stand in the
place of several queries of the same head instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import counted

aten: Any = torch.ops.aten


def grouped_heads(draft: Draft) -> str:
    changed = 0
    for attention in draft.calls(aten.scaled_dot_product_attention.default):
        query, key, value = (_node(attention, index) for index in range(3))
        groups = _groups(key)
        if groups is None or groups != _groups(value) or str(tensor(query).shape[2]) != "1":
            continue
        mask = attention.args[3] if len(attention.args) > 3 else None
        if isinstance(mask, Node) and str(tensor(mask).shape[1]) != "1":
            continue
        own, one = _node(key, 0), _node(value, 0)
        heads = tensor(own).shape[1]
        with draft.before(attention) as call:
            rows = call(aten.unflatten.int, call(aten.squeeze.dim, query, 2), 1, [heads, groups])
            rest = attention.args[3:]
            result = call(attention.target, rows, own, one, *rest, **attention.kwargs)
            result = call(aten.unsqueeze.default, call(aten.flatten.using_ints, result, 1, 2), 2)
        draft.replace(attention, result)
        draft.nodes.erase_node(attention)
        changed += 1
    if not changed:
        return ""
    draft.sweep()
    return f"{counted(changed, 'attention')} without a copy of keys and values"


def _groups(node: Node) -> int | None:
    """How often the heads of keys or values are repeated."""
    if node.target is not aten.repeat_interleave.self_int:
        return None
    arguments: Any = node.args
    dim = arguments[2] if len(arguments) > 2 else node.kwargs.get("dim")
    return arguments[1] if dim == 1 else None


def _node(node: Node, index: int) -> Node:
    one = node.args[index]
    assert isinstance(one, Node)
    return one
