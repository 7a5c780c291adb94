"""Scaled dot-product attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from vlmc.emit.onnx.grouped import grouped
from vlmc.emit.onnx.lowering import Lowering
from vlmc.emit.onnx.patterns import NATIVE, called, source
from vlmc.emit.onnx.values import Value, shape_of

aten: Any = torch.ops.aten


def attention(low: Lowering, node: Node) -> Value:
    """Attention over the heads of [batch, heads, tokens, head_dim]."""
    given = low.given(node)
    mask, causal, scale = given["attn_mask"], bool(given["is_causal"]), given["scale"]
    query: Value = given["query"]
    key, value = (low.argument(_shared(one)) for one in node.args[1:3])
    if low.quantiser is not None and not causal:
        made = grouped(low, node, (query, key, value))
        if made is not None:
            return made
    if low.builder.opset < NATIVE:
        operands = (query, given["key"], given["value"])
        return low.like(node, _decomposed(low, operands, mask, causal=causal, scale=scale))
    return _native(low, node, (query, key, value), mask, causal=causal, scale=scale)


def _shared(node: Any) -> Any:
    """The heads of keys or values before they are repeated for each head of the queries."""
    inner = source(node)
    if called(inner, aten.repeat_interleave.self_int):
        dimension = inner.args[2] if len(inner.args) > 2 else inner.kwargs.get("dim")
        if dimension == 1:
            return inner.args[0]
    return node


def _native(
    low: Lowering,
    node: Node,
    operands: tuple[Value, Value, Value],
    mask: Value | None,
    *,
    causal: bool,
    scale: float | None,
) -> Value:
    """One node. On [batch, tokens, heads * head_dim] where the operands are at hand so, and with
    the cache as inputs and outputs of the node where one is."""
    query, key, value = operands
    call = low.builder.call
    seen = "" if mask is None else _mask(low, mask, query)
    made = Value(shape=shape_of(node.meta["val"]), dtype=query.dtype)
    common: dict[str, Any] = {"is_causal": int(causal) or None, "scale": scale}
    packed_only: dict[str, Any] = {
        **common,
        "q_num_heads": query.shape[1],
        "kv_num_heads": key.shape[1],
    }
    packed = [one.tokens for one in operands]
    if all(one is not None for one in packed):
        names = [low.name(one) for one in packed]
        name = call("Attention", [*names, seen], **packed_only)
        made.tokens = _joined_heads(made, name)
        return made
    if query.tokens and _cached(key) and _cached(value) and not causal:
        assert key.joined is not None
        assert value.joined is not None
        names = [
            low.name(one) for one in (query.tokens, key.joined[1].tokens, value.joined[1].tokens)
        ]
        past = [low.name(key.joined[0]), low.name(value.joined[0])]
        name, key.name, value.name = low.builder.calls(
            "Attention", [*names, seen, *past], 3, **packed_only
        )
        made.tokens = _joined_heads(made, name)
        return made
    names = [low.name(one) for one in operands]
    made.name = call("Attention", [*names, seen], **common)
    return made


def _mask(low: Lowering, mask: Value, query: Value) -> str:
    """A mask with a row for each query: runtimes do not repeat a single one."""
    name = low.name(mask)
    if mask.shape[-2] != 1 or query.shape[2] == 1:
        return name
    wanted = low.extents.vector((1, 1, query.shape[2], 1)[-len(mask.shape) :])
    return low.builder.call("Expand", [name, wanted])


def _cached(value: Value) -> bool:
    """Whether keys or values are a cache and newest tokens that nobody has joined yet."""
    return value.joined is not None and not value.name and value.joined[1].tokens is not None


def _joined_heads(made: Value, name: str) -> Value:
    batch, heads, tokens, width = made.shape
    return Value(shape=(batch, tokens, heads * width), dtype=made.dtype, name=name)


def _decomposed(
    low: Lowering,
    operands: tuple[Value, Value, Value],
    mask: Value | None,
    *,
    causal: bool,
    scale: float | None,
) -> str:
    """softmax(query . key * scale + mask) . value, for opsets without attention."""
    call = low.builder.call
    query, key, value = operands
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scaled = low.name(query)
    if factor != 1.0:
        scaled = call("Mul", [scaled, low.builder.number(factor, torch.float32)])
    scores = call("MatMul", [scaled, call("Transpose", [low.name(key)], perm=[0, 1, 3, 2])])
    if mask is not None and mask.dtype != torch.bool:
        scores = call("Add", [scores, low.name(mask)])
    elif mask is not None:
        scores = call("Add", [scores, _penalty(low, low.name(mask))])
    elif causal:
        places = [low.extents.scalar(one.shape[2]) for one in (query, key)]
        zero, one = (low.builder.number(n, torch.int64) for n in (0, 1))
        rows, columns = (call("Range", [zero, place, one]) for place in places)
        column = call("Unsqueeze", [rows, low.builder.integers([1])])
        scores = call("Add", [scores, _penalty(low, call("LessOrEqual", [columns, column]))])
    return call("MatMul", [call("Softmax", [scores], axis=-1), low.name(value)])


def _penalty(low: Lowering, seen: str) -> str:
    """0 where a mask is True, minus infinity elsewhere."""
    numbers = [low.builder.number(one, torch.float32) for one in (0.0, float("-inf"))]
    return low.builder.call("Where", [seen, *numbers])
