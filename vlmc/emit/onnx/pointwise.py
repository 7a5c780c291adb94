"""Operators that work number by number, and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vlmc.emit.onnx.lowering import Lowering, Operator
from vlmc.emit.onnx.patterns import normalised, rotated
from vlmc.emit.onnx.values import Value, shape_of


def same(low: Lowering, node: Node) -> Any:
    """What a call hands on as it is."""
    return low.argument(node.args[0])


def cast_to(low: Lowering, node: Node) -> Value:
    """Another number format."""
    value: Value = low.argument(node.args[0])
    wanted = node.meta["val"].dtype
    return value if wanted == value.dtype else low.like(node, low.name(value, wanted))


def unary(kind: str, **attributes: Any) -> Operator:
    """A node of one operand."""

    def lower(low: Lowering, node: Node) -> Value:
        value: Value = low.argument(node.args[0])
        return low.rowwise(node, value, lambda x: low.builder.call(kind, [x], **attributes))

    return lower


def binary(kind: str) -> Operator:
    """A node of two operands, in the number format that both are promoted to; on rows where an
    operand is at hand so and the other one fits."""

    def lower(low: Lowering, node: Node) -> Value:
        operands = [low.argument(one) for one in node.args[:2]]
        found = node.meta["val"]
        made = Value(shape=shape_of(found), dtype=found.dtype)
        dtype = _promoted(operands) if found.dtype == torch.bool else found.dtype
        rows = any(isinstance(one, Value) and one.rows for one in operands)
        if rows and all(_fits_rows(one, made, dtype) for one in operands):
            whole = [isinstance(one, Value) and one.shape == made.shape for one in operands]
            names = [
                low.flat(one) if is_whole else low.name(one, dtype)
                for one, is_whole in zip(operands, whole, strict=True)
            ]
            made.flat = low.builder.call(kind, names)
        else:
            made.name = low.builder.call(kind, [low.name(one, dtype) for one in operands])
        return made

    return lower


def _promoted(operands: list[Any]) -> torch.dtype:
    dtypes = [one.dtype for one in operands if isinstance(one, Value | Tensor)]
    return dtypes[0] if len(dtypes) == 1 else torch.promote_types(*dtypes)


def _fits_rows(operand: Any, made: Value, dtype: torch.dtype) -> bool:
    """Whether an operand means the same beside rows as beside what has all its dimensions."""
    if isinstance(operand, Value) and operand.shape == made.shape:
        return operand.dtype == dtype
    return not isinstance(operand, Value | Tensor) or len(operand.shape) <= 1


def add(low: Lowering, node: Node) -> Value:
    """A sum, or the rotation of rotary positions."""
    turned = rotated(low, node)
    return turned if turned is not None else binary("Add")(low, node)


def multiply(low: Lowering, node: Node) -> Value:
    """A product, or an RMSNorm."""
    scaled = normalised(low, node)
    return scaled if scaled is not None else binary("Mul")(low, node)


def square(low: Lowering, node: Node) -> Value:
    """x * x"""
    value: Value = low.argument(node.args[0])
    return low.rowwise(node, value, lambda x: low.builder.call("Mul", [x, x]))


def inverse_root(low: Lowering, node: Node) -> Value:
    """1 / sqrt(x)"""
    value: Value = low.argument(node.args[0])
    call = low.builder.call
    return low.rowwise(node, value, lambda x: call("Reciprocal", [call("Sqrt", [x])]))


def silu(low: Lowering, node: Node) -> Value:
    """x * sigmoid(x)"""
    value: Value = low.argument(node.args[0])
    call = low.builder.call
    return low.rowwise(node, value, lambda x: call("Mul", [x, call("Sigmoid", [x])]))


def gelu(low: Lowering, node: Node) -> Value:
    """Exact, or by its tanh approximation."""
    return unary("Gelu", approximate=low.given(node)["approximate"])(low, node)


def clamp(low: Lowering, node: Node) -> Value:
    """Bounded below, above or both."""
    given = low.given(node)
    value, bounds = given["self"], [given["min"], given["max"]]
    names = ["" if one is None else low.name(one, value.dtype) for one in bounds]
    return low.like(node, low.builder.call("Clip", [low.name(value), *names]))


def masked(low: Lowering, node: Node) -> Value:
    """A number where a mask is True."""
    value, mask, filling = (low.argument(one) for one in node.args)
    names = [low.name(mask), low.name(filling, value.dtype), low.name(value)]
    return low.like(node, low.builder.call("Where", names))


def where(low: Lowering, node: Node) -> Value:
    """One tensor where a mask is True, the other elsewhere."""
    mask, first, second = (low.argument(one) for one in node.args)
    dtype = node.meta["val"].dtype
    names = [low.name(mask), low.name(first, dtype), low.name(second, dtype)]
    return low.like(node, low.builder.call("Where", names))


def between(low: Lowering, node: Node) -> Value:
    """start + share * (end - start)"""
    start, end, share = (low.name(low.argument(one)) for one in node.args)
    call = low.builder.call
    way = call("Mul", [call("Sub", [end, start]), share])
    return low.like(node, call("Add", [start, way]))


def layer_norm(low: Lowering, node: Node) -> Value:
    """Over the last dimension."""
    given = low.given(node)
    assert len(given["normalized_shape"]) == 1
    names = [low.name(given[one]) for one in ("weight", "bias") if given[one] is not None]
    epsilon = given["eps"]
    return low.rowwise(
        node,
        given["input"],
        lambda x: low.builder.call("LayerNormalization", [x, *names], axis=-1, epsilon=epsilon),
    )
