"""The invariants of an `Arch`, checked after every stage that makes or changes one."""

from __future__ import annotations

from vlmc.ir.arch import Arch, Port


class InvalidArch(AssertionError):
    """An Arch that breaks its own invariants: a mistake of vlmc, never of its user."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArch(message)


def _positive(port: Port, where: str) -> None:
    for dim in port.type.dims:
        valid = dim > 0 if isinstance(dim, int) else dim.isidentifier()
        _require(valid, f"{where}.{port.name}: {port.type} has the dimension {dim!r}")


def verify(arch: Arch) -> Arch:
    """Returns `arch` if its graph is sound: roles once, ports typed, every input fed once, every
    output read, no cycle, counts not negative. Raises InvalidArch otherwise."""
    sources = {f"input.{port.name}": port.type for port in arch.inputs}
    targets = {f"output.{port.name}": port.type for port in arch.outputs}
    roles = [node.role for node in arch.nodes]
    _require(len(roles) == len(set(roles)), f"a role appears twice: {roles}")
    for node in arch.nodes:
        for name, count in node.parameters.items():
            _require(count >= 0, f"{node.role}.{name} has {count} parameters")
        for port in node.inputs:
            _positive(port, node.role)
            targets[f"{node.role}.{port.name}"] = port.type
        for port in node.outputs:
            _positive(port, node.role)
            sources[f"{node.role}.{port.name}"] = port.type
    fed: set[str] = set()
    read: set[str] = set()
    for edge in arch.edges:
        _require(edge.source in sources, f"edge from {edge.source}, which does not exist")
        _require(edge.target in targets, f"edge into {edge.target}, which does not exist")
        _require(edge.target not in fed, f"{edge.target} is fed twice")
        ends = (sources[edge.source], edge.type, targets[edge.target])
        _require(ends[0] == ends[1] == ends[2], f"{edge.source} -> {edge.target}: {ends}")
        fed.add(edge.target)
        read.add(edge.source)
    _require(fed == set(targets), f"inputs without a source: {sorted(set(targets) - fed)}")
    _require(read == set(sources), f"outputs that nobody reads: {sorted(set(sources) - read)}")
    _acyclic(arch)
    tokens = arch.tokens
    _require(
        tokens.sequence == tokens.text + tokens.images * tokens.in_sequence,
        f"the sequence does not add up: {tokens}",
    )
    return arch


def _acyclic(arch: Arch) -> None:
    before: dict[str, set[str]] = {node.role: set() for node in arch.nodes}
    for edge in arch.edges:
        source, target = edge.source.split(".")[0], edge.target.split(".")[0]
        if source in before and target in before:
            before[target].add(source)
    while before:
        ready = [role for role, needs in before.items() if not needs & before.keys()]
        _require(bool(ready), f"the parts feed each other in a circle: {sorted(before)}")
        for role in ready:
            del before[role]
