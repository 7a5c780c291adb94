"""What each operator of a captured program becomes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from vlmc.emit.onnx.attention import attention
from vlmc.emit.onnx.builder import MICROSOFT, TYPES
from vlmc.emit.onnx.lowering import Lowering
from vlmc.emit.onnx.patterns import normalised, rotated
from vlmc.emit.onnx.quantise import BLOCK
from vlmc.emit.onnx.values import Value, shape_of

aten: Any = torch.ops.aten
Operator = Callable[[Lowering, Node], Any]

END = 2**63 - 1


def _same(low: Lowering, node: Node) -> Any:
    return low.argument(node.args[0])


def _cast(low: Lowering, node: Node) -> Value:
    value: Value = low.argument(node.args[0])
    wanted = node.meta["val"].dtype
    return value if wanted == value.dtype else low.like(node, low.name(value, wanted))


def _reshape(low: Lowering, node: Node) -> Value:
    return low.reshape(low.argument(node.args[0]), shape_of(node.meta["val"]))


def _unary(kind: str, **attributes: Any) -> Operator:
    def lower(low: Lowering, node: Node) -> Value:
        value: Value = low.argument(node.args[0])
        return low.rowwise(node, value, lambda x: low.builder.call(kind, [x], **attributes))

    return lower


def _binary(kind: str) -> Operator:
    def lower(low: Lowering, node: Node) -> Value:
        return _combined(low, node, kind, low.argument(node.args[0]), low.argument(node.args[1]))

    return lower


def _combined(low: Lowering, node: Node, kind: str, first: Any, second: Any) -> Value:
    """Two operands of one number format, the promoted one; as rows where both are at hand so."""
    found = node.meta["val"]
    dtype = found.dtype
    if dtype == torch.bool:
        tensors = [one for one in (first, second) if isinstance(one, Value | Tensor)]
        dtype = tensors[0].dtype
        for one in tensors[1:]:
            dtype = torch.promote_types(dtype, one.dtype)
    made = Value(shape=shape_of(found), dtype=found.dtype)
    operands = [first, second]
    rows = any(isinstance(one, Value) and one.rows for one in operands)
    if rows and all(_fits_rows(one, made) for one in operands):
        names = [
            low.flat(one)
            if isinstance(one, Value) and one.shape == made.shape
            else low.name(one, dtype)
            for one in operands
        ]
        made.flat = low.builder.call(kind, names)
    else:
        made.name = low.builder.call(kind, [low.name(one, dtype) for one in operands])
    return made


def _fits_rows(operand: Any, made: Value) -> bool:
    """Whether an operand means the same beside rows as beside what has all its dimensions."""
    if not isinstance(operand, Value | Tensor):
        return True
    same = isinstance(operand, Value) and operand.shape == made.shape
    return (same and operand.dtype == made.dtype) or len(operand.shape) <= 1


def _add(low: Lowering, node: Node) -> Value:
    turned = rotated(low, node)
    return turned if turned is not None else _binary("Add")(low, node)


def _multiply(low: Lowering, node: Node) -> Value:
    scaled = normalised(low, node)
    return scaled if scaled is not None else _binary("Mul")(low, node)


def _square(low: Lowering, node: Node) -> Value:
    value: Value = low.argument(node.args[0])
    return low.rowwise(node, value, lambda x: low.builder.call("Mul", [x, x]))


def _rsqrt(low: Lowering, node: Node) -> Value:
    value: Value = low.argument(node.args[0])
    call = low.builder.call
    return low.rowwise(node, value, lambda x: call("Reciprocal", [call("Sqrt", [x])]))


def _silu(low: Lowering, node: Node) -> Value:
    value: Value = low.argument(node.args[0])
    call = low.builder.call
    return low.rowwise(node, value, lambda x: call("Mul", [x, call("Sigmoid", [x])]))


def _gelu(low: Lowering, node: Node) -> Value:
    return _unary("Gelu", approximate=node.kwargs.get("approximate", "none"))(low, node)


def _linear(low: Lowering, node: Node) -> Value:
    value, weight, *rest = [low.argument(one) for one in node.args]
    bias = low.name(rest[0]) if rest and rest[0] is not None else ""
    made = Value(shape=shape_of(node.meta["val"]), dtype=node.meta["val"].dtype)
    packed = None
    if low.quantiser is not None:
        packed = low.quantiser(weight.weights, weight.shape)
    rows = low.flat(value)
    if packed is None:
        # The weights [out, in] are read as they lie: turning them round would copy them all.
        name = low.builder.call("Gemm", [rows, low.name(weight), bias], transB=1)
    else:
        stored = [low.builder.initializer(one) for one in (packed.codes, packed.scales)]
        name = low.builder.call(
            "MatMulNBits",
            [rows, *stored, "", "", bias],
            domain=MICROSOFT,
            K=weight.shape[1],
            N=weight.shape[0],
            bits=packed.bits,
            block_size=BLOCK,
            accuracy_level=4,
        )
    if len(made.shape) == 2:
        made.name = name
    made.flat = name
    return made


def _layer_norm(low: Lowering, node: Node) -> Value:
    value, shape, weight, bias, *rest = [low.argument(one) for one in node.args]
    names = [low.name(weight), *([low.name(bias)] if bias is not None else [])]
    epsilon = float(rest[0]) if rest else 1e-5
    assert len(shape) == 1
    return low.rowwise(
        node,
        value,
        lambda x: low.builder.call("LayerNormalization", [x, *names], axis=-1, epsilon=epsilon),
    )


def _embedding(low: Lowering, node: Node) -> Value:
    table, ids = (low.argument(one) for one in node.args[:2])
    if isinstance(table, Value) and table.stored:
        # Only the rows that are looked up are brought to another number format.
        rows = low.builder.call("Gather", [table.stored, low.name(ids)], axis=0)
        if table.stored_type != TYPES[table.dtype]:
            rows = low.builder.call("Cast", [rows], to=TYPES[table.dtype])
        return low.like(node, rows)
    return low.like(node, low.builder.call("Gather", [low.name(table), low.name(ids)], axis=0))


def _index(low: Lowering, node: Node) -> Value:
    table, (ids,) = (low.argument(one) for one in node.args[:2])
    return low.like(node, low.builder.call("Gather", [low.name(table), low.name(ids)], axis=0))


def _transpose(low: Lowering, node: Node) -> Value:
    value: Value = low.argument(node.args[0])
    rank = len(value.shape)
    first, second = (int(axis) % rank for axis in (node.args[1:3] or (-1, -2)))  # type: ignore[arg-type]
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


def _permute(low: Lowering, node: Node) -> Value:
    value: Value = low.argument(node.args[0])
    order = [int(axis) % len(value.shape) for axis in low.argument(node.args[1])]
    return low.like(node, low.builder.call("Transpose", [low.name(value)], perm=order))


def _cat(low: Lowering, node: Node) -> Value:
    parts, axis = low.argument(node.args[0]), node.args[1] if len(node.args) > 1 else 0
    found = node.meta["val"]
    made = Value(shape=shape_of(found), dtype=found.dtype)
    if axis in (2, -2) and len(parts) == 2 and len(made.shape) == 4 and parts[1].tokens is not None:
        made.joined = (parts[0], parts[1])
        return made
    names = [low.name(one, found.dtype) for one in parts]
    made.name = low.builder.call("Concat", names, axis=int(axis) % found.ndim)  # type: ignore[arg-type]
    return made


def _split(low: Lowering, node: Node) -> list[Value]:
    """In pieces along a dimension: `chunk` and `split_with_sizes`."""
    value: Value = low.argument(node.args[0])
    axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    axis = int(axis) % len(value.shape)  # type: ignore[arg-type]
    pieces = [Value(shape=shape_of(one), dtype=one.dtype) for one in node.meta["val"]]
    sizes = low.extents.vector([piece.shape[axis] for piece in pieces])
    rows = value.rows and axis == len(value.shape) - 1
    source, along = (value.flat, 1) if rows else (low.name(value), axis)
    names = low.builder.call("Split", [source, sizes], outputs=len(pieces), axis=along)
    for piece, name in zip(pieces, [names] if isinstance(names, str) else names, strict=True):
        if rows:
            piece.flat = name
        else:
            piece.name = name
    return pieces


def _item(low: Lowering, node: Node) -> Value:
    source, index = node.args
    return low.values[source][index]  # type: ignore[index]


def _slice(low: Lowering, node: Node) -> Value:
    arguments = [low.argument(one) for one in node.args]
    value, axis, start, end, step = (*arguments, *(None, 0, None, None, 1)[len(arguments) :])
    if value.shape == shape_of(node.meta["val"]):
        return value
    if not isinstance(step, int):
        step = 1
    if end is None or (isinstance(end, int) and end > END // 2):
        end = END
    vectors = [low.extents.one(one) for one in (start or 0, end, axis, step)]
    return low.like(node, low.builder.call("Slice", [low.name(value), *vectors]))


def _select(low: Lowering, node: Node) -> Value:
    value, axis, index = (low.argument(one) for one in node.args)
    place = low.extents.scalar(index)
    return low.like(node, low.builder.call("Gather", [low.name(value), place], axis=axis))


def _unsqueeze(low: Lowering, node: Node) -> Value:
    value, axis = (low.argument(one) for one in node.args)
    axes = low.builder.integers([axis])
    return low.like(node, low.builder.call("Unsqueeze", [low.name(value), axes]))


def _squeeze(low: Lowering, node: Node) -> Value:
    value, axis = (low.argument(one) for one in node.args)
    axes = low.builder.integers([axis] if isinstance(axis, int) else axis)
    return low.like(node, low.builder.call("Squeeze", [low.name(value), axes]))


def _expand(low: Lowering, node: Node) -> Value:
    value: Value = low.argument(node.args[0])
    shape = shape_of(node.meta["val"])
    if tuple(value.shape) == shape:
        return value
    wanted = low.extents.vector(shape)
    return low.like(node, low.builder.call("Expand", [low.name(value), wanted]))


def _repeat(low: Lowering, node: Node) -> Value:
    """Each entry along a dimension `count` times, one after the other."""
    value, count, axis = low.argument([*node.args, *node.kwargs.values()])[:3]
    axis = axis % len(value.shape)
    call = low.builder.call
    wide = call("Unsqueeze", [low.name(value), low.builder.integers([axis + 1])])
    times = low.extents.vector([*[1] * (axis + 1), count, *[1] * (len(value.shape) - axis - 1)])
    repeated = call("Expand", [wide, times])
    shape = low.extents.shape(shape_of(node.meta["val"]))
    return low.like(node, call("Reshape", [repeated, shape]))


def _filled(number: float) -> Operator:
    def lower(low: Lowering, node: Node) -> Value:
        found = node.meta["val"]
        one = low.builder.number(number, found.dtype)
        shape = low.extents.vector(shape_of(found))
        return low.like(node, low.builder.call("Expand", [one, shape]))

    return lower


def _range(low: Lowering, node: Node) -> Value:
    bounds = [low.argument(one) for one in node.args]
    start, end, step = bounds[0], bounds[-1], 1
    if len(bounds) == 1:
        start = 0
    elif len(bounds) == 3:
        start, end, step = bounds
    found = node.meta["val"]
    names = [low.extents.scalar(one) for one in (start, end, step)]
    made = low.builder.call("Range", names)
    if found.dtype != torch.int64:
        made = low.builder.call("Cast", [made], to=TYPES[found.dtype])
    return low.like(node, made)


def _clamp(low: Lowering, node: Node) -> Value:
    value, *bounds = low.argument([*node.args, *node.kwargs.values()])
    if "max" in node.kwargs and len(node.args) == 1 and "min" not in node.kwargs:
        bounds = [None, *bounds]
    names = ["" if one is None else low.name(one, value.dtype) for one in bounds]
    return low.like(node, low.builder.call("Clip", [low.name(value), *names]))


def _reduced(kind: str) -> Operator:
    def lower(low: Lowering, node: Node) -> Value:
        arguments = [low.argument(one) for one in node.args]
        value, axes = arguments[:2]
        axes = [axes] if isinstance(axes, int) else axes
        keep = int(bool(arguments[2])) if len(arguments) > 2 else 0
        found = node.meta["val"]
        # Truth values are reduced as numbers, which every runtime can.
        inner = torch.int32 if value.dtype == torch.bool else value.dtype
        names = [low.name(value, inner), low.builder.integers(axes)]
        made = low.builder.call(kind, names, keepdims=keep)
        if inner != found.dtype:
            made = low.builder.call("Cast", [made], to=TYPES[found.dtype])
        return low.like(node, made)

    return lower


def _variance(low: Lowering, node: Node) -> list[Value]:
    """Variance (divided by the number of entries) and mean, dimensions kept."""
    value, axes = (low.argument(one) for one in node.args)
    assert node.kwargs == {"correction": 0, "keepdim": True}
    call, along = low.builder.call, low.builder.integers(axes)
    name = low.name(value)
    mean = call("ReduceMean", [name, along], keepdims=1)
    off = call("Sub", [name, mean])
    variance = call("ReduceMean", [call("Mul", [off, off]), along], keepdims=1)
    return [
        Value(shape=shape_of(one), dtype=one.dtype, name=made)
        for one, made in zip(node.meta["val"], (variance, mean), strict=True)
    ]


def _argmax(low: Lowering, node: Node) -> Value:
    arguments = [low.argument(one) for one in node.args]
    value, axis = arguments[:2]
    keep = int(bool(arguments[2])) if len(arguments) > 2 else 0
    name = low.name(value, torch.float32 if value.dtype == torch.int64 else value.dtype)
    return low.like(node, low.builder.call("ArgMax", [name], axis=axis, keepdims=keep))


def _running_sum(low: Lowering, node: Node) -> Value:
    value, axis = (low.argument(one) for one in node.args[:2])
    place = low.builder.number(axis, torch.int64)
    return low.like(node, low.builder.call("CumSum", [low.name(value, torch.int64), place]))


def _masked(low: Lowering, node: Node) -> Value:
    value, mask, filling = (low.argument(one) for one in node.args)
    names = [low.name(mask), low.name(filling, value.dtype), low.name(value)]
    return low.like(node, low.builder.call("Where", names))


def _where(low: Lowering, node: Node) -> Value:
    mask, first, second = (low.argument(one) for one in node.args)
    dtype = node.meta["val"].dtype
    names = [low.name(mask), low.name(first, dtype), low.name(second, dtype)]
    return low.like(node, low.builder.call("Where", names))


def _gather(low: Lowering, node: Node) -> Value:
    value, axis, index = (low.argument(one) for one in node.args[:3])
    names = [low.name(value), low.name(index)]
    return low.like(node, low.builder.call("GatherElements", names, axis=axis))


def _lerp(low: Lowering, node: Node) -> Value:
    start, end, share = (low.name(low.argument(one)) for one in node.args)
    call = low.builder.call
    way = call("Mul", [call("Sub", [end, start]), share])
    return low.like(node, call("Add", [start, way]))


def _matmul(low: Lowering, node: Node) -> Value:
    names = [low.name(low.argument(one)) for one in node.args]
    return low.like(node, low.builder.call("MatMul", names))


def _convolution(low: Lowering, node: Node) -> Value:
    arguments = [low.argument(one) for one in node.args]
    value, weight, bias, stride, padding, dilation, groups = (
        *arguments,
        *(None, [1, 1], [0, 0], [1, 1], 1)[len(arguments) - 2 :],
    )
    names = [low.name(value), low.name(weight), *([low.name(bias)] if bias is not None else [])]
    made = low.builder.call(
        "Conv",
        names,
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
        group=groups,
        kernel_shape=list(weight.shape[2:]),
    )
    return low.like(node, made)


def _pad(low: Lowering, node: Node) -> Value:
    arguments = [low.argument(one) for one in node.args]
    value, sizes = arguments[:2]
    rank, own = len(value.shape), len(sizes) // 2
    begin = [0] * (rank - own) + [sizes[2 * (own - 1 - i)] for i in range(own)]
    end = [0] * (rank - own) + [sizes[2 * (own - 1 - i) + 1] for i in range(own)]
    names = [low.name(value), low.builder.integers([*begin, *end])]
    return low.like(node, low.builder.call("Pad", names))


def _pool(low: Lowering, node: Node) -> Value:
    arguments = [low.argument(one) for one in node.args]
    value, kernel = arguments[:2]
    stride = arguments[2] if len(arguments) > 2 and arguments[2] else kernel
    padding = arguments[3] if len(arguments) > 3 else [0, 0]
    ceil = int(bool(arguments[4])) if len(arguments) > 4 else 0
    counted = int(bool(arguments[5])) if len(arguments) > 5 else 1
    made = low.builder.call(
        "AveragePool",
        [low.name(value)],
        kernel_shape=kernel,
        strides=stride,
        pads=[*padding, *padding],
        ceil_mode=ceil,
        count_include_pad=counted,
    )
    return low.like(node, made)


OPERATORS: dict[Any, Operator] = {
    aten.contiguous.default: _same,
    aten.clone.default: _same,
    aten.alias.default: _same,
    aten.detach.default: _same,
    aten.dropout.default: _same,
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten._to_copy.default: _cast,
    aten.view.default: _reshape,
    aten.reshape.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.add.Tensor: _add,
    aten.sub.Tensor: _binary("Sub"),
    aten.mul.Tensor: _multiply,
    aten.div.Tensor: _binary("Div"),
    aten.eq.Tensor: _binary("Equal"),
    aten.eq.Scalar: _binary("Equal"),
    aten.lt.Tensor: _binary("Less"),
    aten.lt.Scalar: _binary("Less"),
    aten.le.Tensor: _binary("LessOrEqual"),
    aten.le.Scalar: _binary("LessOrEqual"),
    aten.gt.Tensor: _binary("Greater"),
    aten.gt.Scalar: _binary("Greater"),
    aten.ge.Tensor: _binary("GreaterOrEqual"),
    aten.ge.Scalar: _binary("GreaterOrEqual"),
    aten.__and__.Tensor: _binary("And"),
    aten.__or__.Tensor: _binary("Or"),
    aten.bitwise_and.Tensor: _binary("And"),
    aten.bitwise_or.Tensor: _binary("Or"),
    aten.logical_and.default: _binary("And"),
    aten.logical_or.default: _binary("Or"),
    aten.bitwise_not.default: _unary("Not"),
    aten.logical_not.default: _unary("Not"),
    aten.pow.Scalar: _binary("Pow"),
    aten.pow.Tensor_Scalar: _binary("Pow"),
    aten.square.default: _square,
    aten.rsqrt.default: _rsqrt,
    aten.sqrt.default: _unary("Sqrt"),
    aten.reciprocal.default: _unary("Reciprocal"),
    aten.abs.default: _unary("Abs"),
    aten.neg.default: _unary("Neg"),
    aten.floor.default: _unary("Floor"),
    aten.log.default: _unary("Log"),
    aten.sin.default: _unary("Sin"),
    aten.cos.default: _unary("Cos"),
    aten.tanh.default: _unary("Tanh"),
    aten.sigmoid.default: _unary("Sigmoid"),
    aten.relu.default: _unary("Relu"),
    aten.silu.default: _silu,
    aten.gelu.default: _gelu,
    aten.linear.default: _linear,
    aten.layer_norm.default: _layer_norm,
    aten.scaled_dot_product_attention.default: attention,
    aten.embedding.default: _embedding,
    aten.index.Tensor: _index,
    aten.transpose.int: _transpose,
    aten.mT.default: _transpose,
    aten.permute.default: _permute,
    aten.cat.default: _cat,
    aten.chunk.default: _split,
    aten.split_with_sizes.default: _split,
    aten.split.sizes: _split,
    operator.getitem: _item,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.expand.default: _expand,
    aten.repeat_interleave.self_int: _repeat,
    aten.zeros.default: _filled(0),
    aten.ones.default: _filled(1),
    aten.zeros_like.default: _filled(0),
    aten.ones_like.default: _filled(1),
    aten.new_ones.default: _filled(1),
    aten.new_zeros.default: _filled(0),
    aten.arange.default: _range,
    aten.arange.start: _range,
    aten.arange.start_step: _range,
    aten.clamp.default: _clamp,
    aten.mean.dim: _reduced("ReduceMean"),
    aten.sum.dim_IntList: _reduced("ReduceSum"),
    aten.any.dim: _reduced("ReduceMax"),
    aten.amax.default: _reduced("ReduceMax"),
    aten.var_mean.correction: _variance,
    aten.argmax.default: _argmax,
    aten.cumsum.default: _running_sum,
    aten.masked_fill.Scalar: _masked,
    aten.where.self: _where,
    aten.gather.default: _gather,
    aten.lerp.Tensor: _lerp,
    aten.matmul.default: _matmul,
    aten.conv2d.default: _convolution,
    aten.pad.default: _pad,
    aten.avg_pool2d.default: _pool,
}
