"""What must hold of a graph after every pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.fx import Node

from vlmc.capture.graph import Graph


def verify(before: Graph, after: Graph, name: str) -> None:
    """Raises AssertionError, which names the pass, where `after` is not a graph that can stand in
    the place of `before`: a mistake of ours."""
    for problem in problems(before, after):
        raise AssertionError(f"pass {name} left graph {before.name} invalid: {problem}")


def problems(before: Graph, after: Graph) -> list[str]:
    """What is wrong with `after`, in words."""
    program: Any = after.program
    found: list[str] = []
    try:
        program.graph.lint()
    except (RuntimeError, ValueError, AssertionError) as fault:
        found.append(f"not well-formed: {fault}")
    found += _bare(program)
    found += _signature(after)
    for side in ("inputs", "outputs"):
        was, now = _edge(before, side), _edge(after, side)
        if was != now:
            found.append(f"its {side} were {was}, they are {now}")
    original: Any = before.program
    if original.range_constraints != program.range_constraints:
        found.append("the bounds of its extents changed")
    if (before.inputs, before.outputs) != (after.inputs, after.outputs):
        found.append("its wires changed")
    if before.bounds != after.bounds:
        found.append("its bounds changed")
    return found


def _bare(program: Any) -> list[str]:
    return [
        f"{node.name} has no value"
        for node in program.graph.nodes
        if node.op in ("placeholder", "call_function")
        and "val" not in node.meta
        and not _checks(node)
    ]


def _checks(node: Node) -> bool:
    """Whether a call gives nothing, being a check."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.returns


def _signature(graph: Graph) -> list[str]:
    program: Any = graph.program
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    specs = program.graph_signature.input_specs
    if [node.name for node in placeholders] != [spec.arg.name for spec in specs]:
        return ["its placeholders are not those of its signature"]
    found: list[str] = []
    constants: set[str] = set()
    for node, spec in zip(placeholders, specs, strict=True):
        if spec.kind is not InputKind.PARAMETER:
            continue
        constants.add(spec.target)
        if spec.target not in graph.constants:
            found.append(f"constant {spec.target} comes from nowhere")
        if spec.target not in program.state_dict:
            found.append(f"constant {spec.target} is not in the state")
        elif program.state_dict[spec.target].shape != node.meta["val"].shape:
            found.append(f"constant {spec.target} has two shapes")
    for extra in sorted({*graph.constants} - constants):
        found.append(f"constant {extra} is not in the program")
    return found


def _edge(graph: Graph, side: str) -> list[tuple[str, str]]:
    """Names of inputs, shapes and number formats of inputs or outputs, in order."""
    program: Any = graph.program
    if side == "outputs":
        results = program.graph.output_node().args[0]
        return [("", "None" if each is None else _type(each.meta["val"])) for each in results]
    specs = program.graph_signature.input_specs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [
        (node.name, _type(node.meta["val"]))
        for node, spec in zip(nodes, specs, strict=False)
        if spec.kind is InputKind.USER_INPUT
    ]


def _type(value: Any) -> str:
    assert isinstance(value, Tensor)
    return f"{value.dtype}{[str(extent) for extent in value.shape]}"
