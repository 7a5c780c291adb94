"""Operators that move numbers and compute none: shapes, pieces, look-ups and ranges."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from vlmc.emit.onnx.builder import TYPES
from vlmc.emit.onnx.lowering import Lowering, Operator
from vlmc.emit.onnx.values import Value, shape_of

END = 2**63 - 1


def reshape(low: Lowering, node: Node) -> Value:
    """Another shape: view, flatten and their like."""
    return low.reshape(low.argument(node.args[0]), shape_of(node.meta["val"]))


def transpose(low: Lowering, node: Node) -> Value:
    """Two dimensions exchanged, the last two without arguments."""
    value: Value = low.argument(node.args[0])
    rank = len(value.shape)
    arguments: Any = node.args[1:3] or (-1, -2)
    first, second = (axis % rank for axis in arguments)
    if rank == 4 and {first, second} == {1, 2}:
        made = Value(shape=shape_of(node.meta["val"]), dtype=value.dtype)
        if value.split is not None:
            made.tokens = value.split
            return made
        if value.tokens is not None:
            made.split = value.tokens
            return made
    order = list(range(rank))
    order[first], order[second] = second, first
    return low.like(node, low.builder.call("Transpose", [low.name(value)], perm=order))


def permute(low: Lowering, node: Node) -> Value:
    """Dimensions in another order."""
    value, order = (low.argument(one) for one in node.args)
    places = [axis % len(value.shape) for axis in order]
    return low.like(node, low.builder.call("Transpose", [low.name(value)], perm=places))


def join(low: Lowering, node: Node) -> Value:
    """Several tensors one after the other; a cache and what is new are left to attention."""
    given, found = low.given(node), node.meta["val"]
    parts, axis = given["tensors"], given["dim"] % found.ndim
    made = Value(shape=shape_of(found), dtype=found.dtype)
    newest = parts[-1]
    heads = isinstance(newest, Value) and newest.tokens is not None
    if axis == 2 and len(parts) == 2 and len(made.shape) == 4 and heads:
        made.joined = (parts[0], newest)
        return made
    names = [low.name(one, found.dtype) for one in parts]
    made.name = low.builder.call("Concat", names, axis=axis)
    return made


def split(low: Lowering, node: Node) -> list[Value]:
    """In pieces along a dimension."""
    given = low.given(node)
    value: Value = given["self"]
    axis = given["dim"] % len(value.shape)
    pieces = [Value(shape=shape_of(one), dtype=one.dtype) for one in node.meta["val"]]
    sizes = low.extents.vector([piece.shape[axis] for piece in pieces])
    rows = value.rows and axis == len(value.shape) - 1
    source, along = (value.flat, 1) if rows else (low.name(value), axis)
    names = low.builder.calls("Split", [source, sizes], len(pieces), axis=along)
    begin = 0
    for piece, name in zip(pieces, names, strict=True):
        if rows:
            piece.flat = name
        else:
            piece.name = name
        if axis == len(value.shape) - 1:
            piece.piece = (value, begin)
            begin += piece.shape[axis]
    return pieces


def item(low: Lowering, node: Node) -> Value:
    """One of several results."""
    source, index = node.args
    return low.argument(source)[index]


def cut(low: Lowering, node: Node) -> Value:
    """A slice along a dimension."""
    given = low.given(node)
    value = given["self"]
    if value.shape == shape_of(node.meta["val"]):
        return value
    end = END if given["end"] is None else given["end"]
    sizes = (given["start"] or 0, end, given["dim"], given["step"])
    vectors = [low.extents.one(size) for size in sizes]
    return low.like(node, low.builder.call("Slice", [low.name(value), *vectors]))


def select(low: Lowering, node: Node) -> Value:
    """One place along a dimension, which goes."""
    value, axis, index = (low.argument(one) for one in node.args)
    place = low.extents.scalar(index)
    return low.like(node, low.builder.call("Gather", [low.name(value), place], axis=axis))


def unsqueeze(low: Lowering, node: Node) -> Value:
    """A new dimension."""
    value, axis = (low.argument(one) for one in node.args)
    axes = low.builder.integers([axis])
    return low.like(node, low.builder.call("Unsqueeze", [low.name(value), axes]))


def squeeze(low: Lowering, node: Node) -> Value:
    """Dimensions of one entry go."""
    value, axis = (low.argument(one) for one in node.args)
    axes = low.builder.integers([axis] if isinstance(axis, int) else axis)
    return low.like(node, low.builder.call("Squeeze", [low.name(value), axes]))


def expand(low: Lowering, node: Node) -> Value:
    """Dimensions of one entry repeated."""
    value: Value = low.argument(node.args[0])
    shape = shape_of(node.meta["val"])
    if value.shape == shape:
        return value
    wanted = low.extents.vector(shape)
    return low.like(node, low.builder.call("Expand", [low.name(value), wanted]))


def repeat(low: Lowering, node: Node) -> Value:
    """Each entry along a dimension several times, one after the other."""
    given = low.given(node)
    value = given["self"]
    axis = given["dim"] % len(value.shape)
    call = low.builder.call
    wide = call("Unsqueeze", [low.name(value), low.builder.integers([axis + 1])])
    ones = [1] * len(value.shape)
    times = low.extents.vector([*ones[: axis + 1], given["repeats"], *ones[axis + 1 :]])
    shape = low.extents.shape(shape_of(node.meta["val"]))
    return low.like(node, call("Reshape", [call("Expand", [wide, times]), shape]))


def filled(number: float) -> Operator:
    """One number everywhere."""

    def lower(low: Lowering, node: Node) -> Value:
        found = node.meta["val"]
        one = low.builder.number(number, found.dtype)
        shape = low.extents.vector(shape_of(found))
        return low.like(node, low.builder.call("Expand", [one, shape]))

    return lower


def count(low: Lowering, node: Node) -> Value:
    """Numbers from a start to an end."""
    given = low.given(node)
    sizes = (given.get("start", 0), given["end"], given.get("step", 1))
    made = low.builder.call("Range", [low.extents.scalar(size) for size in sizes])
    wanted = node.meta["val"].dtype
    if wanted != torch.int64:
        made = low.builder.call("Cast", [made], to=TYPES[wanted])
    return low.like(node, made)


def pad(low: Lowering, node: Node) -> Value:
    """Zeros around the last dimensions."""
    value, sizes = (low.argument(one) for one in node.args[:2])
    own = len(sizes) // 2
    before = [0] * (len(value.shape) - own)
    begin = [*before, *(sizes[2 * (own - 1 - i)] for i in range(own))]
    end = [*before, *(sizes[2 * (own - 1 - i) + 1] for i in range(own))]
    names = [low.name(value), low.builder.integers([*begin, *end])]
    return low.like(node, low.builder.call("Pad", names))


def look_up(low: Lowering, node: Node) -> Value:
    """Rows of a table."""
    table, ids = (low.argument(one) for one in node.args[:2])
    if not isinstance(ids, Value):  # torch's index has one for each dimension
        (ids,) = ids
    if isinstance(table, Value) and table.stored:
        # Only the rows that are looked up are brought to another number format.
        rows = low.builder.call("Gather", [table.stored, low.name(ids)], axis=0)
        if table.stored_type != TYPES[table.dtype]:
            rows = low.builder.call("Cast", [rows], to=TYPES[table.dtype])
        return low.like(node, rows)
    return low.like(node, low.builder.call("Gather", [low.name(table), low.name(ids)], axis=0))


def gather(low: Lowering, node: Node) -> Value:
    """Entries along a dimension by their index."""
    value, axis, index = (low.argument(one) for one in node.args[:3])
    names = [low.name(value), low.name(index)]
    return low.like(node, low.builder.call("GatherElements", names, axis=axis))
