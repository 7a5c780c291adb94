"""An ONNX graph in the making: nodes, constants and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor

from vlmc.builder.located import Located
from vlmc.emit.onnx.external import Initializer, Tables

MICROSOFT = "com.microsoft"

TYPES: dict[torch.dtype, int] = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.bool: onnx.TensorProto.BOOL,
}


class Builder:
    """Collects nodes. The same node asked for twice is one node."""

    def __init__(self, name: str, opset: int, tables: Tables) -> None:
        self.name = name
        self.opset = opset
        self.tables = tables
        self.nodes: list[Any] = []
        self.initializers: dict[str, Initializer] = {}
        self.stem = ""
        """What names of new values begin with."""
        self._known: dict[object, tuple[str, ...]] = {}
        self._used: set[str] = set()

    def call(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        """The name of what a node of `kind` gives; see `calls`."""
        return self.calls(kind, inputs, 1, **attributes)[0]

    def calls(
        self, kind: str, inputs: Sequence[str], outputs: int, **attributes: Any
    ) -> tuple[str, ...]:
        """The names of what a node of `kind` gives.

        An empty name is an input left out; an attribute None is left out; `domain` is the
        operator's set.
        """
        attributes = {key: value for key, value in attributes.items() if value is not None}
        key = (kind, tuple(inputs), outputs, str(sorted(attributes.items())))
        found = self._known.get(key)
        if found is None:
            found = tuple(self.fresh(self.stem or kind.lower()) for _ in range(outputs))
            given = list(inputs)
            while given and not given[-1]:
                given.pop()
            self.nodes.append(
                helper.make_node(kind, given, list(found), name=found[0], **attributes)
            )
            self._known[key] = found
        return found

    def fresh(self, stem: str) -> str:
        """A name that no value has yet."""
        name, count = stem, 1
        while name in self._used:
            count += 1
            name = f"{stem}_{count}"
        self._used.add(name)
        return name

    def reserve(self, names: Sequence[str]) -> None:
        """Keeps `names` for inputs and outputs."""
        self._used.update(names)

    def initializer(self, initializer: Initializer) -> str:
        """The name of a constant that lies in a file."""
        if initializer.name not in self.initializers:
            self._used.add(initializer.name)
            self.initializers[initializer.name] = initializer
        return initializer.name

    def constant(self, values: Tensor) -> str:
        """The name of a constant: a table of real numbers lies in a file, all else in the graph."""
        if values.is_floating_point() and values.numel() > 1:
            return self.initializer(self.tables.add(self.name, values.float()))
        array: Any = values.detach().cpu().contiguous().numpy()
        stored = onnx.numpy_helper.from_array(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        found = self._known.get(key)
        if found is None:
            found = (self.fresh("constant"),)
            self.nodes.append(
                helper.make_node("Constant", [], list(found), name=found[0], value=stored)
            )
            self._known[key] = found
        return found[0]

    def integers(self, values: Sequence[int]) -> str:
        """A constant vector of integers."""
        return self.constant(torch.tensor(list(values), dtype=torch.int64))

    def number(self, value: float, dtype: torch.dtype) -> str:
        """A constant without dimensions."""
        return self.constant(torch.tensor(value, dtype=dtype))

    def finish(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        given: Sequence[str],
        notes: dict[str, str],
        written: Mapping[str, Located],
    ) -> onnx.ModelProto:
        """The model. `inputs` and `outputs` are value infos; `given` names the value of each output
        as it is here; `notes` become metadata; `written` says where constants lie that had no file
        when they were made. What no output needs is left out."""
        renamed = self._outputs(outputs, given, {one.name for one in inputs})
        needed = {renamed.get(name, name) for name in given} | {one.name for one in outputs}
        kept: list[Any] = []
        for node in reversed(self.nodes):
            for side in (node.input, node.output):
                for index, name in enumerate(side):
                    side[index] = renamed.get(name, name)
            if needed.isdisjoint(node.output):
                continue
            kept.append(node)
            needed.update(node.input)
        for node in kept:
            # An optional output that nobody reads is left out.
            while len(node.output) > 1 and node.output[-1] not in needed:
                del node.output[-1]
            if node.domain == MICROSOFT:
                for index, name in enumerate(node.output):
                    node.output[index] = name if name in needed else ""
            node.name = node.output[0]
        stored = [one.proto(written) for name, one in self.initializers.items() if name in needed]
        graph = helper.make_graph(kept[::-1], self.name, list(inputs), list(outputs), stored)
        sets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == MICROSOFT for node in kept):
            sets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(
            graph,
            opset_imports=sets,
            producer_name="vlmc",
            ir_version=min(11, helper.find_min_ir_version_for(sets[:1])),
        )
        helper.set_model_props(model, notes)
        return model

    def _outputs(
        self, outputs: Sequence[Any], given: Sequence[str], inputs: set[str]
    ) -> dict[str, str]:
        """New names for values that become outputs; a value that cannot be renamed is copied."""
        renamed: dict[str, str] = {}
        for one, name in zip(outputs, given, strict=True):
            if name in renamed or name in inputs or name in self.initializers:
                self.nodes.append(helper.make_node("Identity", [name], [one.name], name=one.name))
            else:
                renamed[name] = one.name
        return renamed
