"""Patterns of several operators for which newer ONNX has a node of its own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vlmc.emit.onnx.builder import MICROSOFT
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
    for weight, product in (node.args, node.args[::-1]):
        inner = source(product)
        if called(inner, aten.mul.Tensor):
            x, root = (source(one) for one in inner.args)
            epsilon, scale = _root_mean_square(root, x), low.argument(weight)
            if epsilon is not None and isinstance(scale, Value) and len(scale.shape) == 1:
                if low.quantiser is not None and (made := _with_sum(low, x, scale, epsilon)):
                    return made
                return low.rowwise(node, low.argument(x), _rms(low, low.name(scale), epsilon))
    return None


def _with_sum(low: Lowering, x: Any, scale: Value, epsilon: float) -> Value | None:
    """The norm of a sum, by ONNX Runtime's operator that gives both; None of anything else."""
    terms: Any = x.args if called(x, aten.add.Tensor) and not x.kwargs else ()
    values = [low.argument(one) for one in terms]
    summed: Value = low.argument(x)
    if not values or not all(isinstance(v, Value) and v.shape == summed.shape for v in values):
        return None
    names = [low.name(one) for one in (*values, scale)]
    made, _, _, summed.name = low.builder.calls(
        "SkipSimplifiedLayerNormalization", names, 4, domain=MICROSOFT, epsilon=epsilon
    )
    summed.flat = ""
    return Value(shape=summed.shape, dtype=summed.dtype, name=made)


def _root_mean_square(root: Any, x: Any) -> float | None:
    """The epsilon of rsqrt(mean(x ** 2) + epsilon), the mean over the last dimension; None of
    anything else."""
    if not called(root, aten.rsqrt.default):
        return None
    total = source(root.args[0])
    if not called(total, aten.add.Tensor) or not isinstance(total.args[1], float):
        return None
    mean = source(total.args[0])
    if not called(mean, aten.mean.dim) or list(mean.args[1:3]) != [[-1], True]:
        return None
    square = source(mean.args[0])
    whole = called(square, aten.square.default) and source(square.args[0]) is x
    return total.args[1] if whole else None


def _rms(low: Lowering, scale: str, epsilon: float) -> Callable[[str], str]:
    call = low.builder.call

    def native(x: str) -> str:
        return call("RMSNormalization", [x, scale], axis=-1, epsilon=epsilon)

    def decomposed(x: str) -> str:
        # In the form that runtimes look for to make one kernel of it.
        square = call("Pow", [x, low.builder.number(2.0, torch.float32)])
        mean = call("ReduceMean", [square, low.builder.integers([-1])], keepdims=1)
        root = call("Sqrt", [call("Add", [mean, low.builder.number(epsilon, torch.float32)])])
        return call("Mul", [call("Div", [x, root]), scale])

    return native if low.builder.opset >= NATIVE else decomposed


def rotated(low: Lowering, node: Node) -> Value | None:
    """x * cos + cat(-second half, first half) * sin: rotary positions (Su et al., 2021)."""
    straight, crossed = node.args[:2]
    products = called(straight, aten.mul.Tensor) and called(crossed, aten.mul.Tensor)
    if low.builder.opset < NATIVE or not products:
        return None
    x, cos = straight.args  # type: ignore[union-attr]
    turned, sin = crossed.args  # type: ignore[union-attr]
    value = low.argument(x)
    if not _turned(turned, x) or len(value.shape) != 4:
        return None
    cosines = _cache(low, cos, aten.cos.default, value)
    sines = _cache(low, sin, aten.sin.default, value)
    if cosines is None or sines is None:
        return None
    made = Value(shape=shape_of(node.meta["val"]), dtype=value.dtype)
    if value.tokens is None:
        made.name = low.builder.call("RotaryEmbedding", [low.name(value), cosines, sines])
        return made
    # On [batch, tokens, heads * head_dim], so that heads need not be brought to the front.
    inner = value.tokens
    names = [low.name(inner), cosines, sines]
    name = low.builder.call("RotaryEmbedding", names, num_heads=value.shape[1])
    made.tokens = Value(shape=inner.shape, dtype=inner.dtype, name=name)
    if low.quantiser is not None and (found := _frequencies(low, source(cos))) is not None:
        made.tokens.turned = (inner, found)
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


def _cache(low: Lowering, node: Any, kind: Any, x: Value) -> str | None:
    """Cosines or sines as the operator wants them, [batch, tokens, head_dim / 2], of
    cos(cat(angles, angles)) [batch, 1, tokens, head_dim] or of some tokens of it; None of anything
    else."""
    whole = source(node)
    own = whole
    if called(own, aten.gather.default) and own.args[1] == 2:
        own = source(own.args[0])
    if not called(own, kind):
        return None
    both = source(own.args[0])
    if not called(both, aten.cat.default) or list(both.args[1:]) != [-1]:
        return None
    parts, value = both.args[0], low.argument(whole)
    if len(parts) != 2 or parts[0] is not parts[1] or value.shape[1] != 1:
        return None
    call, integers = low.builder.call, low.builder.integers
    half = [integers([end]) for end in (0, value.shape[3] // 2, 3)]
    cache = call("Squeeze", [call("Slice", [low.name(value), *half]), integers([1])])
    if value.shape[0] == x.shape[0]:
        return cache
    wanted = low.extents.vector((x.shape[0], value.shape[2], value.shape[3] // 2))
    return call("Expand", [cache, wanted])


def _frequencies(low: Lowering, cosines: Any) -> Tensor | None:
    """Frequencies [head_dim / 2] of cos(cat(angles, angles)), the angles being each token's place
    among the tokens of its row times the frequencies; None of anything else."""
    if not called(cosines, aten.cos.default):
        return None
    angles = source(cosines.args[0]).args[0][0]
    if not called(angles, aten.mul.Tensor):
        return None
    table = low.argument(angles.args[1])
    numbers = table.numbers if isinstance(table, Value) else table
    if not isinstance(numbers, Tensor) or numbers.numel() != numbers.shape[-1]:
        return None
    return numbers.float().flatten() if _counts_tokens(angles.args[0]) else None


def _counts_tokens(node: Any) -> bool:
    """Whether a node is the place of each of the newest tokens among the tokens of its row:
    max(cumsum(mask) - 1, 0)."""
    while called(node, aten.to.dtype, aten.unsqueeze.default):
        node = node.args[0]
    steps = {
        aten.slice.Tensor: 1,
        aten.clamp.default: 0,
        aten.sub.Tensor: 1,
        aten.cumsum.default: -1,
    }
    for target, number in steps.items():
        if not called(node, target) or node.args[1] != number:
            return False
        node = node.args[0]
    return node.op == "placeholder"
