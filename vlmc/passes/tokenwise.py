"""Operators that treat each token by itself: along which axis of its operands the tokens lie."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vlmc.capture.program import tensor

aten: Any = torch.ops.aten

Operands = list[tuple[Node, int]]

ELEMENTWISE = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.pow.Tensor_Scalar,
    aten.square.default,
    aten.rsqrt.default,
    aten.neg.default,
    aten.silu.default,
    aten.gelu.default,
    aten.relu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.clamp.default,
    aten.to.dtype,
    aten.ge.Scalar,
    aten.ge.Tensor,
    aten.gt.Tensor,
    aten.le.Tensor,
    aten.lt.Tensor,
    aten.eq.Tensor,
    aten.bitwise_not.default,
    aten.__or__.Tensor,
    aten.__and__.Tensor,
    aten.masked_fill.Scalar,
    aten.where.self,
}
LAST_AXIS = {aten.mean.dim, aten.any.dim, aten.sum.dim_IntList}
RESHAPES = {aten.view.default, aten.reshape.default}
PIECES = {aten.chunk.default, aten.split_with_sizes.default, aten.split.Tensor}


def operands(node: Node, axis: int) -> Operands | None:
    """The operands of a call that have tokens, and on which axis, where those of the result lie on
    `axis` and token t of the result follows from token t of each of these alone; None of a call of
    which that cannot be said."""
    target: Any = node.target
    if target in ELEMENTWISE:
        return _broadcast(node, axis)
    if target is aten.scaled_dot_product_attention.default:
        return _attention(node, axis)
    if target is aten.gather.default:
        own = _number(node, 1) != axis
        return [(_source(node, 0), axis), (_source(node, 2), axis)] if own else None
    if target is aten.cat.default:
        pieces: Any = node.args[0]
        return [(piece, axis) for piece in pieces] if _number(node, 1, 0) != axis else None
    before = _unary(node, axis)
    return None if before is None else [(_source(node, 0), before)]


def _unary(node: Node, axis: int) -> int | None:  # noqa: PLR0911
    """The axis of the tokens of a call's first operand, the only one that has any."""
    target: Any = node.target
    rank = _rank(node)
    if target is aten.linear.default or target is aten.layer_norm.default:
        return axis if axis < rank - 1 else None
    if target is aten.matmul.default:
        return axis if axis == rank - 2 and _rank(_source(node, 0)) == rank else None
    if target in LAST_AXIS:
        over: Any = node.args[1]
        dims: Any = [over] if isinstance(over, int) else over
        kept = len(node.args) > 2 and bool(node.args[2])
        return axis if kept and all(dim % rank != axis for dim in dims) else None
    if target is aten.transpose.int:
        one, two = (_number(node, index) for index in (1, 2))
        return {one: two, two: one}.get(axis, axis)
    if target is aten.unflatten.int:
        split: Any = node.args[1]
        return axis if axis < split % _rank(_source(node, 0)) else None
    if target is aten.flatten.using_ints:
        first: Any = node.args[1]
        return axis if axis < first % _rank(_source(node, 0)) else None
    if target in RESHAPES or target is aten.expand.default:
        was = [str(extent) for extent in tensor(_source(node, 0)).shape]
        now = [str(extent) for extent in tensor(node).shape]
        return axis if was[: axis + 1] == now[: axis + 1] or _stretched(node, axis) else None
    if target in PIECES:
        return axis if _number(node, 2, 0) != axis else None
    if getattr(target, "__name__", "") == "getitem":
        return axis
    return None


def _stretched(node: Node, axis: int) -> bool:
    """Whether a call repeats its operand along other axes than that of the tokens."""
    if node.target is not aten.expand.default:
        return False
    source = tensor(_source(node, 0))
    same_rank = source.ndim == _rank(node)
    return same_rank and str(source.shape[axis]) == str(tensor(node).shape[axis])


def _broadcast(node: Node, axis: int) -> Operands:
    found: Operands = []
    for one in node.all_input_nodes:
        value = one.meta["val"]
        if not isinstance(value, Tensor):
            continue
        own = axis - (_rank(node) - value.ndim)
        if own >= 0 and str(value.shape[own]) != "1":
            found.append((one, own))
    return found


def _attention(node: Node, axis: int) -> Operands | None:
    """The queries' tokens, and those of the mask; every query reads all keys."""
    if axis != _rank(node) - 2:
        return None
    found = [(_source(node, 0), axis)]
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if isinstance(mask, Node):
        own = tensor(mask).ndim - 2
        if str(tensor(mask).shape[own]) != "1":
            found.append((mask, own))
    return found


def _source(node: Node, index: int) -> Node:
    source = node.args[index]
    assert isinstance(source, Node)
    return source


def _rank(node: Node) -> int:
    value: Any = node.meta["val"]
    one: Tensor = value if isinstance(value, Tensor) else value[0]
    return one.ndim


def _number(node: Node, index: int, default: int = 0) -> int:
    """An axis of the result among a call's arguments, counted from the front."""
    value: Any = node.args[index] if len(node.args) > index else default
    return value % _rank(node)
