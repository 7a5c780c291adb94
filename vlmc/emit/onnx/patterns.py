"""Patterns of several operators for which newer ONNX has a node of its own."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from vlmc.emit.onnx.lowering import Lowering
from vlmc.emit.onnx.values import Value, shape_of

aten: Any = torch.ops.aten

NATIVE = 23
"""The first opset with Attention, RMSNormalization and RotaryEmbedding."""


def source(node: Any) -> Any:
    """What a node copies without a change of number format, or the node itself."""
    same = (aten.to.dtype, aten._to_copy.default, aten.clone.default, aten.contiguous.default)
    while (
        isinstance(node, Node)
        and node.target in same
        and isinstance(node.args[0], Node)
        and node.meta["val"].dtype == node.args[0].meta["val"].dtype
    ):
        node = node.args[0]
    return node


def called(node: Any, *targets: Any) -> bool:
    """Whether a node calls one of `targets`."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def normalised(low: Lowering, node: Node) -> Value | None:
    """weight * (x * rsqrt(mean(x ** 2) + epsilon)), which is RMSNorm (Zhang and Sennrich, 2019)."""
    weight, inner = (source(one) for one in node.args)
    if not called(inner, aten.mul.Tensor):
        weight, inner = inner, weight
    if not called(inner, aten.mul.Tensor):
        return None
    x, root = (source(one) for one in inner.args)
    if not called(root, aten.rsqrt.default):
        return None
    total = source(root.args[0])
    if not called(total, aten.add.Tensor) or not isinstance(total.args[1], float):
        return None
    mean = source(total.args[0])
    if not called(mean, aten.mean.dim) or list(mean.args[1:3]) != [[-1], True]:
        return None
    square = source(mean.args[0])
    if not called(square, aten.square.default) or source(square.args[0]) is not x:
        return None
    scale = low.argument(weight)
    if not isinstance(scale, Value) or len(scale.shape) != 1:
        return None
    epsilon, value = total.args[1], low.argument(x)
    return low.rowwise(node, value, lambda name: _rms(low, name, low.name(scale), epsilon))


def _rms(low: Lowering, x: str, scale: str, epsilon: float) -> str:
    call = low.builder.call
    if low.builder.opset >= NATIVE:
        return call("RMSNormalization", [x, scale], axis=-1, epsilon=epsilon)
    # In the form that runtimes look for to make one kernel of it.
    square = call("Pow", [x, low.builder.number(2.0, torch.float32)])
    mean = call("ReduceMean", [square, low.builder.integers([-1])], keepdims=1)
    root = call("Sqrt", [call("Add", [mean, low.builder.number(epsilon, torch.float32)])])
    return call("Mul", [call("Div", [x, root]), scale])


def rotated(low: Lowering, node: Node) -> Value | None:
    """x * cos + cat(-second half, first half) * sin: rotary positions (Su et al., 2021)."""
    if low.builder.opset < NATIVE or len(node.args) != 2:
        return None
    straight, crossed = node.args
    if not (called(straight, aten.mul.Tensor) and called(crossed, aten.mul.Tensor)):
        return None
    x, cos = straight.args  # type: ignore[union-attr]
    turned, sin = crossed.args  # type: ignore[union-attr]
    if not _turned(turned, x):
        return None
    halves = [_half(low, cos, aten.cos.default), _half(low, sin, aten.sin.default)]
    value = low.argument(x)
    if halves[0] is None or halves[1] is None or len(value.shape) != 4:
        return None
    angles = [
        _cache(low, half, kind, value) for half, kind in zip(halves, ("Cos", "Sin"), strict=True)
    ]
    made = Value(shape=shape_of(node.meta["val"]), dtype=value.dtype)
    if value.tokens is None:
        made.name = low.builder.call("RotaryEmbedding", [low.name(value), *angles])
        return made
    # On [batch, tokens, heads * head_dim], so that heads need not be brought to the front.
    inner = value.tokens
    names = [low.name(inner), *angles]
    name = low.builder.call("RotaryEmbedding", names, num_heads=value.shape[1])
    made.tokens = Value(shape=inner.shape, dtype=inner.dtype, name=name)
    return made


def _turned(node: Any, x: Any) -> bool:
    """Whether a node is cat(-second half of x, first half of x)."""
    if not called(node, aten.cat.default) or list(node.args[1:]) != [-1]:
        return False
    negative, first = node.args[0]
    if not (called(negative, aten.neg.default) and called(first, operator.getitem)):
        return False
    second = negative.args[0]
    if not called(second, operator.getitem) or second.args[0] is not first.args[0]:
        return False
    halves = first.args[0]
    return (
        (first.args[1], second.args[1]) == (0, 1)
        and called(halves, aten.chunk.default)
        and halves.args[0] is x
        and list(halves.args[1:]) == [2, -1]
    )


def _half(low: Lowering, node: Any, kind: Any) -> Value | None:
    """The angles [batch, 1, tokens, head_dim / 2] of cos(cat(angles, angles))."""
    node = source(node)
    if not called(node, kind):
        return None
    both = source(node.args[0])
    if not called(both, aten.cat.default) or list(both.args[1:]) != [-1]:
        return None
    first, second = both.args[0]
    angles = low.argument(first)
    alone = first is second and isinstance(angles, Value) and len(angles.shape) == 4
    return angles if alone and angles.shape[1] == 1 else None


def _cache(low: Lowering, angles: Value | None, kind: str, x: Value) -> str:
    """Cosines or sines as the operator wants them: [batch, tokens, head_dim / 2]."""
    assert angles is not None
    call = low.builder.call
    flat = call("Squeeze", [call(kind, [low.name(angles)]), low.builder.integers([1])])
    if angles.shape[0] == x.shape[0]:
        return flat
    wanted = low.extents.vector((x.shape[0], *angles.shape[2:]))
    return call("Expand", [flat, wanted])
