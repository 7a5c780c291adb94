"""Removes calls that hand on what they are given: casts to the type that a tensor has, dropout
outside of training, products with one, aliases; and what only asserts a tensor's own type."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import counted

aten: Any = torch.ops.aten

CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default)
ALWAYS = (aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default)


def no_ops(draft: Draft) -> str:
    checks = draft.calls(aten._assert_tensor_metadata.default)
    for check in checks:
        draft.nodes.erase_node(check)
    removed = 0
    for node in draft.calls():
        if _hands_on(node):
            draft.replace(node, node.all_input_nodes[0])
            draft.nodes.erase_node(node)
            removed += 1
    if not checks and not removed:
        return ""
    return f"{counted(removed, 'call')} and {counted(len(checks), 'check')} of types removed"


def _hands_on(node: Node) -> bool:
    if node.target in ALWAYS:
        return True
    if node.target is aten.dropout.default:
        return not node.args[2]
    if node.target is aten.mul.Tensor and node.args[1] == 1:
        return _same(node)
    return (node.target in CASTS or node.target is aten.expand.default) and _same(node)


def _same(node: Node) -> bool:
    """Whether a call gives the type and the shape of what it takes."""
    source = node.args[0]
    if not isinstance(source, Node) or not isinstance(source.meta["val"], Tensor):
        return False
    was, now = tensor(source), tensor(node)
    # Extents are compared as text: a comparison of unknown ones would be a new assumption.
    return (was.dtype, was.device, str(was.shape)) == (now.dtype, now.device, str(now.shape))
