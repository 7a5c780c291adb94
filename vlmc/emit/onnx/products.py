"""Operators that sum over many numbers: products of matrices, convolutions and reductions."""

from __future__ import annotations

import torch
from torch.fx import Node

from vlmc.emit.onnx.builder import MICROSOFT, TYPES
from vlmc.emit.onnx.lowering import Lowering, Operator
from vlmc.emit.onnx.values import Value, shape_of


def linear(low: Lowering, node: Node) -> Value:
    """x . weight^T + bias.

    Gemm works on rows; MatMulNBits takes what it is given.

    The weights [out, in] are read as they lie. MatMul of the weights turned round is no faster, and
    a runtime that turns them round at load has two copies of them by then: of 110M weights, ONNX
    Runtime 1.31 on one thread took 15 ms a row either way, and 0.6 GB at its peak instead of 0.5.
    """
    given, found = low.given(node), node.meta["val"]
    value, weight = given["input"], given["weight"]
    bias = "" if given["bias"] is None else low.name(given["bias"])
    packed = None
    if low.quantiser is not None:
        packed = low.quantiser(weight.weights, weight.shape)
    if packed is not None:
        stored = [low.builder.initializer(one) for one in (packed.codes, packed.scales)]
        return low.rowwise(
            node,
            value,
            lambda x: low.builder.call(
                "MatMulNBits",
                [x, *stored, "", "", bias],
                domain=MICROSOFT,
                K=weight.shape[1],
                N=weight.shape[0],
                bits=packed.bits,
                block_size=packed.block,
                accuracy_level=4,
            ),
        )
    name = low.builder.call("Gemm", [low.flat(value), low.name(weight), bias], transB=1)
    made = Value(shape=shape_of(found), dtype=found.dtype, flat=name)
    if len(made.shape) == 2:
        made.name = name
    return made


def matmul(low: Lowering, node: Node) -> Value:
    """The product of two tensors."""
    names = [low.name(low.argument(one)) for one in node.args]
    return low.like(node, low.builder.call("MatMul", names))


def convolution(low: Lowering, node: Node) -> Value:
    """Over two dimensions."""
    given = low.given(node)
    names = [low.name(given[one]) for one in ("input", "weight", "bias") if given[one] is not None]
    padding = given["padding"]
    made = low.builder.call(
        "Conv",
        names,
        strides=given["stride"],
        pads=[*padding, *padding],
        dilations=given["dilation"],
        group=given["groups"],
        kernel_shape=list(given["weight"].shape[2:]),
    )
    return low.like(node, made)


def pool(low: Lowering, node: Node) -> Value:
    """Means over windows of two dimensions."""
    given = low.given(node)
    padding = given["padding"]
    made = low.builder.call(
        "AveragePool",
        [low.name(given["self"])],
        kernel_shape=given["kernel_size"],
        strides=given["stride"] or given["kernel_size"],
        pads=[*padding, *padding],
        ceil_mode=int(given["ceil_mode"]),
        count_include_pad=int(given["count_include_pad"]),
    )
    return low.like(node, made)


def reduced(kind: str) -> Operator:
    """A sum, a mean or the largest over dimensions."""

    def lower(low: Lowering, node: Node) -> Value:
        given, found = low.given(node), node.meta["val"]
        value, axes = given["self"], given["dim"]
        # Truth values are reduced as numbers, which every runtime can.
        inner = torch.int32 if value.dtype == torch.bool else value.dtype
        along = low.builder.integers([axes] if isinstance(axes, int) else axes)
        names = [low.name(value, inner), along]
        made = low.builder.call(kind, names, keepdims=int(given["keepdim"]))
        if inner != found.dtype:
            made = low.builder.call("Cast", [made], to=TYPES[found.dtype])
        return low.like(node, made)

    return lower


def variance(low: Lowering, node: Node) -> list[Value]:
    """Variance (divided by the number of entries) and mean, dimensions kept."""
    given = low.given(node)
    assert (given["correction"], given["keepdim"]) == (0, True)
    call, along = low.builder.call, low.builder.integers(given["dim"])
    name = low.name(given["self"])
    mean = call("ReduceMean", [name, along], keepdims=1)
    off = call("Sub", [name, mean])
    spread = call("ReduceMean", [call("Mul", [off, off]), along], keepdims=1)
    return [
        Value(shape=shape_of(one), dtype=one.dtype, name=made)
        for one, made in zip(node.meta["val"], (spread, mean), strict=True)
    ]


def largest(low: Lowering, node: Node) -> Value:
    """The index of the largest number along a dimension."""
    given = low.given(node)
    value = given["self"]
    name = low.name(value, torch.float32 if value.dtype == torch.int64 else value.dtype)
    keep = int(given["keepdim"])
    return low.like(node, low.builder.call("ArgMax", [name], axis=given["dim"], keepdims=keep))


def running_sum(low: Lowering, node: Node) -> Value:
    """Sums of all entries so far along a dimension."""
    value, axis = (low.argument(one) for one in node.args[:2])
    place = low.builder.number(axis, torch.int64)
    wanted = node.meta["val"].dtype
    return low.like(node, low.builder.call("CumSum", [low.name(value, wanted), place]))
