"""Editing a captured graph: a draft is changed in place and becomes a valid graph again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Node
from torch.fx.node import map_arg

from vlmc.capture.graph import Constant, Graph

# Entries of a node's metadata that say where it comes from; they are handed on to what replaces it.
ORIGIN = ("nn_module_stack", "stack_trace", "torch_fn", "source_fn_stack", "from_node")


class Draft:
    """A copy of a graph that may be edited.

    `nodes` is the torch.fx graph: constants are placeholders before those of the inputs. Every node
    that is made here carries its fake value, so that shapes can be read off anywhere.
    """

    def __init__(self, graph: Graph) -> None:
        self.source = graph
        self.program: Any = graph.program
        self.nodes: Any = copy.deepcopy(self.program.graph)
        self.constants: dict[str, Constant] = dict(graph.constants)
        self.state: dict[str, Any] = dict(self.program.state_dict)
        self.targets: dict[Node, str] = {}
        inputs: list[Node] = []
        specs = self.program.graph_signature.input_specs
        for node, spec in zip(self.placeholders(), specs, strict=True):
            if spec.kind is InputKind.PARAMETER:
                self.targets[node] = spec.target
            else:
                inputs.append(node)
        self.inputs = tuple(inputs)
        values = [node.meta["val"] for node in self.nodes.nodes if "val" in node.meta]
        self.fakes: Any = detect_fake_mode(values)

    def placeholders(self) -> list[Node]:
        """Constants first, then inputs."""
        return [node for node in self.nodes.nodes if node.op == "placeholder"]

    def calls(self, *operators: Any) -> list[Node]:
        """Nodes that call one of `operators`, in order; without any, every call."""
        return [
            node
            for node in self.nodes.nodes
            if node.op == "call_function" and (not operators or node.target in operators)
        ]

    @property
    def output(self) -> Node:
        return self.nodes.output_node()

    @contextmanager
    def before(self, node: Node) -> Generator[Callable[..., Node]]:
        """Inside, `call(operator, *args, **kwargs)` adds nodes before `node`, each with its value
        and with the origin of `node`."""
        origin = {key: node.meta[key] for key in ORIGIN if key in node.meta}

        def call(operator: Any, *args: Any, **kwargs: Any) -> Node:
            new: Node = self.nodes.call_function(operator, args, kwargs)
            new.meta.update(origin)
            new.meta["val"] = self.value(operator, args, kwargs)
            return new

        with self.nodes.inserting_before(node):
            yield call

    def value(self, operator: Any, args: Any, kwargs: Any) -> Any:
        """What a call gives, as a fake value."""
        real_args, real_kwargs = map_arg((args, kwargs), lambda node: node.meta["val"])  # type: ignore[reportUnknownLambdaType]
        with self.fakes, torch.no_grad():
            return operator(*real_args, **real_kwargs)

    def add_constant(
        self, target: str, like: Tensor, shape: Sequence[int], constant: Constant, before: Node
    ) -> Node:
        """A new constant of `shape`, in the number format of `like`, as a placeholder in front of
        the placeholder `before`."""
        assert target not in self.constants, target
        with self.fakes:
            value = nn.Parameter(torch.empty(tuple(shape), dtype=like.dtype), requires_grad=False)
        with self.nodes.inserting_before(before):
            node: Node = self.nodes.placeholder("p_" + target.replace(".", "_"))
        node.meta["val"] = value
        self.targets[node] = target
        self.constants[target] = constant
        self.state[target] = value
        return node

    def remove_constant(self, node: Node) -> None:
        """Removes the placeholder of a constant that nothing reads."""
        target = self.targets.pop(node)
        self.nodes.erase_node(node)
        del self.constants[target]
        self.state.pop(target)

    def replace(self, old: Node, new: Node) -> None:
        """Whatever reads `old` reads `new` from now on."""
        old.replace_all_uses_with(new)

    def sweep(self) -> int:
        """Removes calls that nothing reads and that change nothing; how many."""
        removed = 0
        for node in reversed(list(self.nodes.nodes)):
            if node.op == "call_function" and not node.users and not has_effect(node):
                self.nodes.erase_node(node)
                removed += 1
        return removed

    def finish(self) -> Graph:
        """The graph with what the draft has changed."""
        kept = self.program.graph_signature
        ours = {spec.arg.name: spec for spec in kept.input_specs}
        inputs = [
            InputSpec(InputKind.PARAMETER, TensorArgument(name=node.name), self.targets[node])
            if node in self.targets
            else ours[node.name]
            for node in self.placeholders()
        ]
        results: Any = self.output.args[0]
        outputs = [OutputSpec(OutputKind.USER_OUTPUT, _argument(each), None) for each in results]
        root = self.program.module_call_graph[0]
        program = ExportedProgram(
            root=self.program.graph_module,
            graph=self.nodes,
            graph_signature=ExportGraphSignature(inputs, outputs),
            state_dict=self.state,
            range_constraints=dict(self.program.range_constraints),
            module_call_graph=[root],
            example_inputs=self.program.example_inputs,
            constants=self.program.constants,
            verifiers=self.program.verifiers,
        )
        return replace(self.source, program=program, constants=self.constants)


def _argument(result: Node | None) -> TensorArgument | ConstantArgument:
    """How a signature says what a graph gives."""
    if result is None:
        return ConstantArgument(name="", value=None)
    return TensorArgument(name=result.name)


def has_effect(node: Node) -> bool:
    """Whether a call does more than give a value: it writes into a tensor, or it checks one."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    name = str(schema.name)
    return bool(schema.is_mutable) or name.startswith(("aten::_assert", "aten::sym_constrain"))


def tensor(node: Node) -> Tensor:
    """The fake value of a node that gives a tensor."""
    value = node.meta["val"]
    assert isinstance(value, Tensor), node
    return value
