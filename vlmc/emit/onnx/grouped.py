"""Attention over a cache that is written in place, by ONNX Runtime's GroupQueryAttention.

ONNX's own Attention gives keys and values back as new tensors, so that a step copies all that the
cache holds. This operator writes the newest keys and values behind the others where it is handed
one buffer as the cache before and after. It also takes queries, keys and values as one projection
gives them, and turns queries and keys by their positions itself. Graphs that are quantised need
this runtime anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vlmc.emit.onnx.builder import MICROSOFT, TYPES
from vlmc.emit.onnx.lowering import Lowering
from vlmc.emit.onnx.patterns import called
from vlmc.emit.onnx.values import Value, shape_of

aten: Any = torch.ops.aten

UNSEEN = -1e9
"""Added to the scores of padding. Finite: a query that sees nothing is nobody's, but no NaN."""
ROTARY_MULTIPLE = 8
"""The operator's kernel turns so many numbers at a time."""


def grouped(low: Lowering, node: Node, operands: tuple[Value, Value, Value]) -> Value | None:
    """Causal attention of the newest tokens over a cache and themselves, of which padding, wherever
    it stands, is seen by nobody; None of any other attention."""
    query, key, value = operands
    mask: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    padding = _padding(mask)
    if padding is None or key.joined is None or value.joined is None or key.name or value.name:
        return None
    newest = (query.tokens, key.joined[1].tokens, value.joined[1].tokens)
    if any(one is None for one in newest) or query.shape[2] != key.joined[1].shape[2]:
        return None
    scale = low.given(node)["scale"]
    rotary, names = _newest(low, newest, query.shape[3])
    past = [low.name(one.joined[0]) for one in (key, value) if one.joined is not None]
    seen = low.argument(padding)
    last, total, bias = _extents(low, seen, query)
    turning = ["", "", ""]
    if rotary is not None:
        turning = [*_tables(low, rotary), low.name(_places(low, seen, query))]
    name, key.name, value.name = low.builder.calls(
        "GroupQueryAttention",
        [*names, *past, last, total, *turning, bias],
        3,
        domain=MICROSOFT,
        num_heads=query.shape[1],
        kv_num_heads=key.shape[1],
        do_rotary=int(rotary is not None),
        scale=scale,
    )
    batch, heads, tokens, width = query.shape
    made = Value(shape=shape_of(node.meta["val"]), dtype=query.dtype)
    made.tokens = Value(shape=(batch, tokens, heads * width), dtype=query.dtype, name=name)
    return made


def _padding(mask: Any) -> Node | None:
    """The input [batch, keys], 1 at tokens, of a mask of the newest queries of a causal sequence:
    (keys up to the query and no padding) or the query itself."""
    if not called(mask, aten.unsqueeze.default) or not called(mask.args[0], aten.__or__.Tensor):
        return None
    both, itself = mask.args[0].args
    if not called(both, aten.__and__.Tensor) or not called(itself, aten.eq.Tensor):
        return None
    before, tokens = both.args
    if not called(before, aten.le.Tensor) or before.args != itself.args:
        return None
    inner: Any = tokens.args[0] if called(tokens, aten.to.dtype) else None
    found = inner.args[0] if called(inner, aten.unsqueeze.default) else None
    return found if isinstance(found, Node) and found.op == "placeholder" else None


def _newest(
    low: Lowering, newest: tuple[Any, Any, Any], width: int
) -> tuple[Tensor | None, list[str]]:
    """The frequencies by which the operator is to turn queries and keys, None where they are turned
    already or never, and its first three inputs."""
    query, key, value = newest
    turned = [one.turned for one in (query, key)]
    frequencies = None
    if all(one is not None for one in turned) and width // 2 % ROTARY_MULTIPLE == 0:
        (query, frequencies), (key, others) = turned
        if not torch.equal(frequencies, others):
            query, key, frequencies = *newest[:2], None
    pieces = [one.piece for one in (query, key, value)]
    if all(one is not None for one in pieces):
        wholes, begins = [one[0] for one in pieces], [one[1] for one in pieces]
        sizes = [one.shape[-1] for one in (query, key, value)]
        in_order = begins == [0, sizes[0], sizes[0] + sizes[1]]
        if wholes[0] is wholes[1] is wholes[2] and in_order and wholes[0].shape[-1] == sum(sizes):
            return frequencies, [low.name(wholes[0]), "", ""]
    return frequencies, [low.name(one) for one in (query, key, value)]


def _extents(low: Lowering, seen: Value, query: Value) -> tuple[str, str, str]:
    """The place [batch] of each row's last token, the number of places, and what is added to scores
    [batch, 1, queries, keys]. A place is a token's or padding's; all rows have as many."""
    call, integers = low.builder.call, low.builder.integers
    batch, total = seen.shape
    count = low.extents.one(total)
    last = call("Expand", [call("Sub", [count, integers([1])]), low.extents.vector([batch])])
    number = TYPES[torch.int32]
    bias = call(
        "Where",
        [
            low.name(seen, torch.bool),
            *(low.builder.number(one, torch.float32) for one in (0.0, UNSEEN)),
        ],
    )
    rows = call("Unsqueeze", [bias, integers([1, 2])])
    whole = call("Expand", [rows, low.extents.vector([1, 1, query.shape[2], 1])])
    return call("Cast", [last], to=number), call("Cast", [count], to=number), whole


def _tables(low: Lowering, frequencies: Tensor) -> list[str]:
    """Cosines and sines [places, head_dim / 2] of every place that a sequence may have."""
    places = torch.arange(low.graph.bounds["total"][1], dtype=torch.float32)
    angles = places[:, None] * frequencies
    return [low.builder.constant(angles.cos()), low.builder.constant(angles.sin())]


def _places(low: Lowering, seen: Value, query: Value) -> Value:
    """The position [batch, queries] of each of the newest tokens: min(place, place of the row's
    first token + number of tokens before).

    Only distances matter. In a first call the operator takes places for positions whatever it is
    given, which is right for padding in front of a row or behind it; later, padding between a
    prompt and its answer must not count.
    """
    call, integers = low.builder.call, low.builder.integers
    zero, one = (low.builder.number(n, torch.int64) for n in (0, 1))
    before = call("Sub", [call("CumSum", [low.name(seen), one]), one])
    first = call("ArgMax", [low.name(seen, torch.int32)], axis=1, keepdims=1)
    place = call("Range", [zero, low.extents.scalar(seen.shape[1]), one])
    positions = call("Min", [place, call("Add", [first, before])])
    start = low.extents.one(seen.shape[1] - query.shape[2])
    ends = [start, integers([2**63 - 1]), integers([1]), integers([1])]
    newest = call("Slice", [positions, *ends])
    return Value(shape=(query.shape[0], query.shape[2]), dtype=torch.int64, name=newest)
