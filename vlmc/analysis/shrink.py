"""A design with each distinct block a few times: as wide as ever, and shallow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vlmc.ir import Arch, Argument, Node, Role


@dataclass(frozen=True, slots=True)
class Instance:
    """A block that the shallow design has, and what it stands for in the deep one."""

    period: int
    """Blocks of one period follow each other; stacks that take turns share their periods."""
    periods: int = 1
    """How often its period stands in the deep design."""
    times: int = 1
    """How often it stands in its period."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A shallow design, and for each of its stacks what its blocks stand for."""

    arch: Arch
    stacks: Mapping[str, tuple[Instance, ...]]
    """By the path of the stack's ModuleList: `language.layers`."""


def shrink(arch: Arch) -> Shrunk:
    """The first, one middle and the last period of every stack, with nothing made narrower.

    Parameters of the shallow design's nodes are not counted anew.
    """
    stacks: dict[str, tuple[Instance, ...]] = {}
    changed: dict[Role, dict[str, Argument]] = {}
    every = 1
    for node in arch.nodes:
        if node.role == "fusion" and "every" in node.arguments:
            every = _number(node.arguments["every"])
    for node in arch.nodes:
        changes: dict[str, Argument] = {}
        if node.role == "encoder" and "feature_layers" in node.arguments:
            changes, stacks["encoder.layers"] = _vit(node)
        elif node.role == "encoder" and "depths" in node.arguments:
            changes, stacks["encoder.blocks"] = _nfnet(node)
        elif node.role == "adapter" and "queries" in node.arguments:
            period = _number(node.arguments.get("cross_attention_every", 1))
            changes, stacks["adapter.layers"] = _stack(node, "layers", period)
            if "cross_attention_every" in node.arguments:
                changes["cross_attention_every"] = min(period, 2)
        elif node.role == "language":
            for name in ("layers", "encoder_layers", "decoder_layers"):
                if name in node.arguments:
                    change, stacks[f"language.{name}"] = _stack(node, name, every)
                    changes |= change
        changed[node.role] = changes
    if every > 1 or any("every" in node.arguments for node in arch.nodes):
        periods = stacks["language.layers"]
        gated = {one.period: Instance(one.period, one.periods) for one in periods}
        stacks["gated_blocks"] = tuple(gated[key] for key in sorted(gated))
        changed["fusion"] = {"every": min(every, 2), "blocks": len(gated)}
    nodes = tuple(
        replace(node, arguments={**node.arguments, **changed[node.role]}) for node in arch.nodes
    )
    return Shrunk(replace(arch, nodes=nodes), stacks)


def _number(value: object) -> int:
    assert isinstance(value, int), "an argument that says how deep a part is"
    return value


def _stack(node: Node, name: str, period: int) -> tuple[dict[str, Argument], tuple[Instance, ...]]:
    """A stack in which each `period`-th block, from the first on, is of another kind."""
    layers = _number(node.arguments[name])
    whole = -(-layers // period)
    last = layers - (whole - 1) * period
    kept: list[Instance] = []
    for number in range(min(whole, 3)):
        middle = whole - 2 if number == 1 and whole > 3 else 1
        length = last if number == min(whole, 3) - 1 else period
        kept.append(Instance(number, middle))
        if length > 1:
            kept.append(Instance(number, middle, length - 1))
    return {name: len(kept)}, tuple(kept)


def _vit(node: Node) -> tuple[dict[str, Argument], tuple[Instance, ...]]:
    """Blocks up to the deepest that is read, and one for those beyond it, which do not run."""
    layers = _number(node.arguments["layers"])
    chosen = node.arguments["feature_layers"]
    assert isinstance(chosen, tuple)
    states = [int(one) for one in chosen]
    deepest = max(states)
    if len(states) > 1 or deepest <= 3:
        kept = [Instance(number) for number in range(deepest)]
        read = tuple(states)
    else:
        kept = [Instance(0), Instance(1, deepest - 2), Instance(2)]
        read = (3,)
    if layers > deepest:
        kept.append(Instance(len(kept), layers - deepest))
    return {"layers": len(kept), "feature_layers": read}, tuple(kept)


def _nfnet(node: Node) -> tuple[dict[str, Argument], tuple[Instance, ...]]:
    """The first block of each stage, one of the middle, and the last."""
    depths = node.arguments["depths"]
    assert isinstance(depths, tuple)
    kept: list[Instance] = []
    shallow: list[int] = []
    for depth in (int(one) for one in depths):
        shallow.append(min(depth, 2))
        kept.append(Instance(len(kept)))
        if depth > 1:
            kept.append(Instance(len(kept), depth - 1))
    return {"depths": tuple(shallow)}, tuple(kept)
