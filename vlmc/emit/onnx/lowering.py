"""From a captured program to ONNX nodes, operator by operator.

Our components use a closed set of operators, so that each is written as the one node that ONNX has
for it; what that leaves as patterns of several (norms, rotations, the cache) is recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import SymInt, Tensor
from torch.export.graph_signature import InputKind
from torch.fx import Node

from vlmc.capture.graph import Graph, Stored
from vlmc.diagnostics import UsageError
from vlmc.emit.onnx.builder import TYPES, Builder
from vlmc.emit.onnx.external import FORMATS, Initializer
from vlmc.emit.onnx.quantise import Quantiser
from vlmc.emit.onnx.values import Extents, Shape, Value, extent, shape_of

Operator = Callable[["Lowering", Node], Any]
"""Gives the value of a call, or a list of its values."""

LARGEST_TABLE = 1_000_000
"""Numbers of a constant that is computed here rather than by whoever runs the graph."""


class Lowering:
    """The state of one graph's translation.

    `constants` gives the initializers of each constant of the graph; with a `quantiser` the weights
    of linear layers are replaced.
    """

    def __init__(
        self,
        graph: Graph,
        builder: Builder,
        constants: Mapping[str, Sequence[Initializer]],
        quantiser: Quantiser | None,
    ) -> None:
        self.graph = graph
        self.builder = builder
        self.extents = Extents(builder)
        self.constants = constants
        self.quantiser = quantiser
        self.values: dict[Node, Any] = {}

    def begin(self) -> None:
        """Makes the values of constants and inputs."""
        program: Any = self.graph.program
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        wires = iter(self.graph.inputs)
        inputs: list[tuple[Node, str]] = []
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind is InputKind.PARAMETER:
                self.values[node] = self.constant(spec.target, node.meta["val"])
            else:
                inputs.append((node, next(wires).name))
        self.builder.reserve([name for _, name in inputs])
        self.builder.reserve([wire.name for wire in self.graph.outputs])
        for node, name in inputs:
            found = node.meta["val"]
            value = Value(shape=shape_of(found), dtype=found.dtype, name=name)
            self.values[node] = value
            self.extents.learn(name, value.shape)
        if self.quantiser is not None:
            self._derive_past([self.values[node].shape for node, _ in inputs])

    def _derive_past(self, shapes: Sequence[Shape]) -> None:
        """A cache that is written in place has room for more than it holds."""
        named = {
            dim: size
            for wire, shape in zip(self.graph.inputs, shapes, strict=True)
            for dim, size in zip(wire.dims, shape, strict=True)
        }
        if {"past", "total", "text"} <= named.keys():
            self.extents.derived[named["past"]] = named["total"] - named["text"]

    def constant(self, target: str, like: Tensor) -> Value:
        """A constant of the graph; `like` has its shape."""
        constant = self.graph.constants[target]
        stored = self.constants[target]
        whole = len(stored) == 1
        return Value(
            shape=shape_of(like),
            dtype=like.dtype,
            stored=self.builder.initializer(stored[0]) if whole else self.joined(stored),
            stored_type=FORMATS[stored[0].format],
            weights=constant.parts if isinstance(constant, Stored) else (),
            numbers=None if constant.parts or isinstance(constant, Stored) else constant.compute(),
        )

    def joined(self, stored: Sequence[Initializer]) -> str:
        """Constants that do not lie side by side, joined along their first dimension."""
        return self.builder.call("Concat", [self.builder.initializer(s) for s in stored], axis=0)

    # Forms of values

    def name(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """The name of a value as it is, in another number format where one is named."""
        if isinstance(value, Tensor):
            return self.builder.constant(value if dtype is None else value.to(dtype))
        if not isinstance(value, Value):
            return self.builder.number(value, dtype or torch.float32)
        if not value.name:
            value.name = self._made(value)
        if dtype is None or dtype == value.dtype:
            return value.name
        return self.builder.call("Cast", [value.name], to=TYPES[dtype])

    def _made(self, value: Value) -> str:
        call = self.builder.call
        if value.stored:
            same = value.stored_type == TYPES[value.dtype]
            return value.stored if same else call("Cast", [value.stored], to=TYPES[value.dtype])
        if value.flat:
            return call("Reshape", [value.flat, self.extents.shape(value.shape)])
        if value.split is not None:
            return self._reshaped(value.split, value.shape)
        if value.tokens is not None:
            batch, heads, tokens, width = value.shape
            rows = self._reshaped(value.tokens, (batch, tokens, heads, width))
            return call("Transpose", [rows], perm=[0, 2, 1, 3])
        assert value.joined is not None
        return call("Concat", [self.name(one) for one in value.joined], axis=2)

    def _reshaped(self, value: Value, shape: Shape) -> str:
        if value.rows:
            return self.builder.call("Reshape", [value.flat, self.extents.shape(shape)])
        wanted = self.extents.shape(shape, value.shape)
        return self.builder.call("Reshape", [self.name(value), wanted])

    def flat(self, value: Value) -> str:
        """The name of a value as rows."""
        if not value.flat:
            name = self.name(value)
            if len(value.shape) == 2:
                return name
            vector = self.builder.integers([-1, value.shape[-1]])
            value.flat = self.builder.call("Reshape", [name, vector])
        return value.flat

    def reshape(self, value: Value, shape: Shape) -> Value:
        """`value` in another shape."""
        if shape == value.shape:
            return value
        inner = value.split
        if inner is not None and inner.shape == shape:
            return inner
        made = Value(shape=shape, dtype=value.dtype)
        if len(shape) == 4 and len(value.shape) == 3 and shape[:2] == value.shape[:2]:
            made.split = value
        elif value.rows and shape[-1] == value.shape[-1]:
            made.flat = value.flat
        else:
            made.name = self._reshaped(value, shape)
        return made

    def like(self, node: Node, name: str) -> Value:
        """A value of the node's shape and number format."""
        found = node.meta["val"]
        return Value(shape=shape_of(found), dtype=found.dtype, name=name)

    def rowwise(self, node: Node, value: Value, make: Callable[[str], str]) -> Value:
        """What `make` gives for each row of the last dimension of `value`, in its shape."""
        found = node.meta["val"]
        made = Value(shape=shape_of(found), dtype=found.dtype)
        if value.flat:
            made.flat = make(value.flat)
        else:
            made.name = make(self.name(value))
        return made

    # Translation

    def argument(self, given: Any) -> Any:
        """An argument of a call: values for nodes, extents for sizes."""
        if isinstance(given, Node):
            if given in self.values:
                return self.values[given]
            return extent(given.meta["val"])
        if isinstance(given, list | tuple):
            return [self.argument(one) for one in cast("Sequence[Any]", given)]
        return extent(given) if isinstance(given, SymInt) else given

    def given(self, node: Node) -> dict[str, Any]:
        """The arguments of a call by the names that its operator has for them, defaults too."""
        target: Any = node.target
        found: dict[str, Any] = {}
        for index, parameter in enumerate(target._schema.arguments):
            if index < len(node.args):
                found[parameter.name] = self.argument(node.args[index])
            elif parameter.name in node.kwargs:
                found[parameter.name] = self.argument(node.kwargs[parameter.name])
            else:
                found[parameter.name] = parameter.default_value
        return found

    def run(self, operators: Mapping[Any, Operator]) -> list[str]:
        """Translates every call; the names of the outputs. Raises UsageError for an operator
        that has no form in ONNX here."""
        self.begin()
        program: Any = self.graph.program
        for node in program.graph.nodes:
            if node.op != "call_function" or not _gives(node):
                continue
            self.builder.stem = node.name
            if (known := self._known(node)) is not None:
                self.values[node] = known
                continue
            if node.target not in operators:
                raise UsageError(
                    f"onnx/{self.graph.name} cannot be written: the design uses {node.target}, "
                    f"which has no ONNX form here; --artifacts model leaves ONNX out"
                )
            self.values[node] = operators[node.target](self, node)
        self.builder.stem = ""
        results: Any = program.graph.output_node().args[0]
        return [self.name(self.values[node]) for node in results]

    def _known(self, node: Node) -> Any:
        """The value of a call that depends on nothing but numbers."""
        arguments = self.argument([*node.args, *node.kwargs.values()])
        target: Any = node.target
        if _variable(arguments) or getattr(target, "__name__", "") == "getitem":
            return None
        found = node.meta["val"]
        if not isinstance(found, Tensor) or found.numel() > LARGEST_TABLE:
            return None
        args = [self.argument(one) for one in node.args]
        kwargs = {key: self.argument(one) for key, one in node.kwargs.items()}
        return target(*args, **kwargs)


def _gives(node: Node) -> bool:
    """Whether a call gives tensors: checks and sizes are no part of the graph."""
    found = node.meta.get("val")
    if isinstance(found, list | tuple):
        return any(isinstance(one, Tensor) for one in cast("Sequence[Any]", found))
    return isinstance(found, Tensor)


def _variable(given: Any) -> bool:
    """Whether a value, or an extent that varies, is among arguments."""
    if isinstance(given, list | tuple):
        return any(_variable(one) for one in cast("Sequence[Any]", given))
    return isinstance(given, Value) or hasattr(given, "free_symbols")
