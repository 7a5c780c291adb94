"""Small results that depend on weights alone become constants: tanh of a gate, the normed queries
of a Q-Former, the frequencies of a rotary embedding, the scales of standardised convolutions.

A captured graph holds no values. Such a constant is a `Folded`, which replays the calls that it
stands for when an artifact is written. It lies there beside the weights that it is made of, so it
is folded where it is smaller than they are: of a standardised convolution the scale of each output,
and not the kernel once more.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import Module

from vlmc.capture.graph import Folded, Stored
from vlmc.capture.program import Draft, has_effect, tensor
from vlmc.passes.effect import counted
from vlmc.passes.operators import is_random, is_view

aten: Any = torch.ops.aten

LIMIT = 1 << 16
"""Values of a folded constant at most: they are stored beside an artifact."""

COPY = 256
"""Values that may take the place of no more values, however small a graph is."""
SHARE = 10_000
"""The part of all its values that a graph may have again, in one constant."""


FACTORIES = (aten.arange.default, aten.arange.start, aten.arange.start_step, aten.full.default)


@dataclass(frozen=True)
class Replay:
    """Runs a small graph whose inputs are the parts of a constant, each first brought to the number
    format in which the graph was captured."""

    module: Any
    formats: tuple[torch.dtype, ...]
    parts: tuple[int, ...]
    """How many weights each input is joined from."""

    def __call__(self, *parts: Tensor) -> Tensor:
        rest = iter(parts)
        inputs = [
            torch.cat([next(rest) for _ in range(count)]).to(dtype)
            if count > 1
            else next(rest).to(dtype)
            for count, dtype in zip(self.parts, self.formats, strict=True)
        ]
        result: Tensor = self.module(*inputs)
        return result.contiguous()


def fold_constants(draft: Draft) -> str:
    fixed = _fixed(draft)
    fronts = [
        node
        for node in fixed
        if isinstance(node.meta["val"], Tensor)
        and any(user not in fixed for user in node.users)
        and _computed(node)
    ]
    # All of them before any is replaced: one may follow from another.
    constants = [_folded(draft, node) for node in fronts]
    for node, (name, constant) in zip(fronts, constants, strict=True):
        like = tensor(node)
        draft.replace(node, draft.add_constant(name, like, like.shape, constant, draft.inputs[0]))
    if not fronts:
        return ""
    folded = draft.sweep()
    for node in [node for node in draft.targets if not node.users]:
        draft.remove_constant(node)
    return f"{counted(folded, 'call')} folded into {counted(len(fronts), 'constant')}"


def _fixed(draft: Draft) -> dict[Node, None]:
    """Calls whose results are small and follow from constants alone, in order."""
    fixed: dict[Node, None] = {}
    sizes = {node: tensor(node).numel() for node in draft.targets}
    copy = max(COPY, sum(sizes.values()) // SHARE)
    largest = dict(sizes)
    """Of each constant and each call: values of the largest weight that it follows from."""
    for node in draft.calls():
        sources = node.all_input_nodes
        known = all(one in draft.targets or one in fixed for one in sources)
        if known and _small(node.meta.get("val")) and not has_effect(node) and not is_random(node):
            stored = [one for one in sources if one in draft.targets]
            if not all(isinstance(draft.constants[draft.targets[one]], Stored) for one in stored):
                continue
            made_of = max((largest[one] for one in sources), default=LIMIT + 1)
            if _free(node) or _values(node.meta["val"]) <= max(copy, made_of - 1):
                fixed[node] = None
                largest[node] = made_of
    return fixed


def _values(value: Any) -> int:
    """Values of a result, which is a tensor of known shape, or several."""
    return value.numel() if isinstance(value, Tensor) else sum(_values(item) for item in value)


def _small(value: Any) -> bool:
    """Whether a result is a tensor of known shape, or several, below the limit."""
    if isinstance(value, Tensor):
        extents: tuple[Any, ...] = tuple(value.shape)
        return all(isinstance(extent, int) for extent in extents) and value.numel() <= LIMIT
    items: Any = value
    return isinstance(value, (list, tuple)) and all(_small(item) for item in items)


def _computed(node: Node) -> bool:
    """Whether there is arithmetic in a result: views and counts cost nothing to repeat."""
    if node.op == "placeholder":
        return False
    if not _free(node):
        return True
    return any(_computed(one) for one in node.all_input_nodes)


def _free(node: Node) -> bool:
    """Whether a call costs nothing to repeat."""
    return is_view(node) or node.target in FACTORIES or node.target is operator.getitem


def _folded(draft: Draft, node: Node) -> tuple[str, Folded]:
    """The constant that a call becomes, with its name."""
    leaves, calls = _ancestry(draft, node)
    small = Graph()
    copies: dict[Node, Node] = {leaf: small.placeholder(leaf.name) for leaf in leaves}
    for call in calls:
        copies[call] = small.node_copy(call, lambda source: copies[source])
    small.output(copies[node])
    stored = [_stored(draft, leaf) for leaf in leaves]
    constant = Folded(
        parts=tuple(part for one in stored for part in one.parts),
        compute=Replay(
            GraphModule(Module(), small),
            tuple(tensor(leaf).dtype for leaf in leaves),
            tuple(len(one.parts) for one in stored),
        ),
    )
    return _name(draft, leaves, node), constant


def _stored(draft: Draft, leaf: Node) -> Stored:
    """A constant that is made of weights: a folded one's parts are not its values."""
    constant = draft.constants[draft.targets[leaf]]
    assert isinstance(constant, Stored), leaf
    return constant


def _ancestry(draft: Draft, node: Node) -> tuple[list[Node], list[Node]]:
    """The constants that a call follows from, and the calls on the way to it, in order."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += one.all_input_nodes
    ordered = sorted(seen)
    leaves = [one for one in ordered if one in draft.targets]
    return leaves, [one for one in ordered if one not in draft.targets]


def _name(draft: Draft, leaves: list[Node], node: Node) -> str:
    """A name for a folded constant: that of the weight that it comes from, and the last call's."""
    origin = draft.targets[leaves[0]] if leaves else "model.constant"
    name = f"{origin}_{node.name}"
    assert name not in draft.constants, name
    return name
