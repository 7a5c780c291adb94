"""Masks of cross-attention are worked out by image, then repeated for each of its tokens once.

Who sees which image is [batch, text, images]; attention asks for it by visual token, 64 times as
large in Flamingo (Alayrac et al., 2022). The repetition moves down behind `any` and `or`.

Causal masks need nothing here. Reading a prompt into a cache of fixed size is captured as causal
attention without a mask; a growing cache takes padding on the left, which is no causal form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import counted

aten: Any = torch.ops.aten

REPEAT = aten.repeat_interleave.self_int
JOINS = (aten.__or__.Tensor, aten.__and__.Tensor, aten.bitwise_or.Tensor, aten.bitwise_and.Tensor)


def image_masks(draft: Draft) -> str:
    moved = 0
    for node in draft.calls():
        if node.target is aten.unsqueeze.default:
            moved += _unsqueeze(draft, node)
        elif node.target is aten.any.dim:
            moved += _any(draft, node)
        elif node.target in JOINS:
            moved += _join(draft, node)
    if not moved:
        return ""
    draft.sweep()
    return f"{counted(moved, 'call')} on masks done by image instead of by visual token"


def _repeated(node: Any) -> tuple[Node, Any] | None:
    """A mask by image and how often it is repeated, where `node` repeats its last axis."""
    if not isinstance(node, Node) or node.target is not REPEAT:
        return None
    arguments: Any = node.args
    source: Any = arguments[0]
    dim: Any = arguments[2] if len(arguments) > 2 else node.kwargs.get("dim")
    if dim is None or tensor(source).dtype is not torch.bool:
        return None
    return (source, arguments[1]) if dim % tensor(source).ndim == tensor(source).ndim - 1 else None


def _unsqueeze(draft: Draft, node: Node) -> int:
    found = _repeated(node.args[0])
    place: Any = node.args[1]
    if found is None or place % tensor(node).ndim == tensor(node).ndim - 1:
        return 0
    with draft.before(node) as call:
        small = call(node.target, found[0], place)
        _put(draft, node, call(REPEAT, small, found[1], -1))
    return 1


def _any(draft: Draft, node: Node) -> int:
    found = _repeated(node.args[0])
    arguments: Any = node.args
    rank = tensor(arguments[0]).ndim
    if found is None or arguments[1] % rank != rank - 1:
        return 0
    with draft.before(node) as call:
        _put(draft, node, call(node.target, found[0], *arguments[1:]))
    return 1


def _join(draft: Draft, node: Node) -> int:
    """A mask by visual token with one that is the same for all of them."""
    first, second = node.args
    found = _repeated(first)
    if found is None or not isinstance(second, Node) or str(tensor(second).shape[-1]) != "1":
        return 0
    with draft.before(node) as call:
        small = call(node.target, found[0], second)
        _put(draft, node, call(REPEAT, small, found[1], -1))
    return 1


def _put(draft: Draft, old: Node, new: Node) -> None:
    draft.replace(old, new)
    draft.nodes.erase_node(old)
