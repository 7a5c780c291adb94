"""Common subexpressions: what is computed twice from the same tensors is computed once.

Rotary tables, sinusoids of relative attention (one per layer as written) and masks of gated blocks
(one per block) become one each.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import SymInt, Tensor
from torch.fx import Node

from vlmc.capture.program import Draft, has_effect
from vlmc.passes.effect import counted
from vlmc.passes.operators import is_random, is_view, writes

Key = tuple[Hashable, ...]


def shared_results(draft: Draft) -> str:
    written = _written(draft)
    checked = any(has_effect(node) and not writes(node) for node in draft.calls())
    first: dict[Key, Node] = {}
    removed = 0
    for node in draft.calls():
        if (
            has_effect(node)
            or is_random(node)
            or any(one in written for one in node.all_input_nodes)
        ):
            continue
        key = _key(node, checked)
        if key is None:
            continue
        if key in first:
            draft.replace(node, first[key])
            draft.nodes.erase_node(node)
            removed += 1
        else:
            first[key] = node
    return f"{counted(removed, 'repeated call')} removed" if removed else ""


def _written(draft: Draft) -> set[Node]:
    """Tensors that are written into, and every view of them: what is read of them depends on when
    it is read."""
    written: set[Node] = set()
    for node in draft.calls():
        if not writes(node):
            continue
        root = node.args[0]
        while isinstance(root, Node):
            written.add(root)
            root = root.args[0] if root.op == "call_function" else None
    for node in draft.calls():
        if is_view(node) and node.args[0] in written:
            written.add(node)
    return written


def _key(node: Node, checked: bool) -> Key | None:
    """What a call computes; None where that cannot be said."""
    value = node.meta["val"]
    if isinstance(value, SymInt) and not checked:
        # Extents that are known to be equal, of whichever tensor; not where assertions say so.
        return ("extent", str(value))
    key = (node.target, _frozen(node.args), _frozen(sorted(node.kwargs.items())))
    return (*key, str(value.dtype)) if isinstance(value, Tensor) else key


def _frozen(value: Any) -> Hashable:
    """An argument as something to compare by; 1, 1.0 and True differ."""
    if isinstance(value, Node):
        return value
    items: Any = value
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in items)
    return (type(value).__name__, repr(value))
