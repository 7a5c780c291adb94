"""Only one token's logits are asked for: what nothing else reads is computed for it alone.

The choice of that token (a prompt's last, or the one that a classifier reads) moves up from the
logits through the final norm and the last block: its MLP, its attention's output and its queries
are computed for one token of each row. Keys and values stay those of all tokens. Of n layers that
is nearly one n-th of a prompt's work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import counted
from vlmc.passes.tokenwise import RESHAPES, operands

aten: Any = torch.ops.aten


AROUND_ATTENTION = frozenset(
    {
        aten.scaled_dot_product_attention.default,
        aten.transpose.int,
        aten.flatten.using_ints,
    }
)


def last_token(draft: Draft) -> str:
    return _last(draft, frozenset())


def last_token_after_attention(draft: Draft) -> str:
    """For kernels of attention that take as many new keys as queries: the last block's attention
    is computed for every token, what follows it for one."""
    return _last(draft, AROUND_ATTENTION)


def _last(draft: Draft, kept: frozenset[Any]) -> str:
    """`kept` names operators above which the choice does not move."""
    moved = sum(_move(draft, gather, index, kept) for gather, index in _choices(draft))
    if not moved:
        return ""
    draft.sweep()
    return f"{counted(moved, 'call')} computed for one token only"


def _choices(draft: Draft) -> list[tuple[Node, Node]]:
    """Calls that choose one token of each row, [batch, tokens, width] -> [batch, 1, width], each
    with the numbers of the tokens [batch, 1, 1]."""
    found: list[tuple[Node, Node]] = []
    for gather in draft.calls(aten.gather.default):
        index = gather.args[2]
        if gather.args[1] != 1 or not isinstance(index, Node):
            continue
        source = index.args[0]
        if index.target is aten.expand.default and isinstance(source, Node):
            one = tensor(source)
            if one.ndim == 3 and one.shape[1:] == (1, 1):
                found.append((gather, source))
    return found


def _move(draft: Draft, gather: Node, index: Node, kept: frozenset[Any]) -> int:
    """Moves a choice as far up as nobody else needs the other tokens; over how many calls."""
    start = gather.args[0]
    assert isinstance(start, Node)
    axes = _cone(draft, gather, start, kept)
    if not axes:
        return 0
    rows = _Rows(draft, index)
    cone = sorted(axes)
    for node in cone:
        with draft.before(gather) as call:
            rows.compute(node, axes[node], call)
    draft.replace(gather, rows.chosen[start])
    return len(cone)


def _cone(draft: Draft, gather: Node, start: Node, kept: frozenset[Any]) -> dict[Node, int]:
    """Calls that only the chosen token's way to the logits reads, with their tokens' axis."""
    axes: dict[Node, int] = {}
    wanted: dict[Node, set[int]] = {start: {1}}
    for node in reversed(draft.calls()):
        places = wanted.get(node)
        readers = {*node.users} - {gather}
        if places is None or len(places) > 1 or not readers <= axes.keys():
            continue
        if node.target in kept:
            continue
        axis = next(iter(places))
        sources = operands(node, axis)
        if sources is None:
            continue
        axes[node] = axis
        for source, own in sources:
            wanted.setdefault(source, set()).add(own)
    return axes


class _Rows:
    """The chosen token of each row: of what is in the cone computed, of the rest picked out."""

    def __init__(self, draft: Draft, index: Node) -> None:
        self.draft = draft
        self.index = index
        self.chosen: dict[Node, Node] = {}
        self.picked: dict[tuple[Node, int], Node] = {}

    def compute(self, node: Node, axis: int, call: Any) -> None:
        """Repeats a call of the cone for the chosen token."""
        sources = operands(node, axis)
        assert sources is not None
        own = dict(sources)
        short = {one: self.of(one, own[one], call) for one in own}
        args = [self._swap(arg, short) for arg in node.args]
        kwargs = {name: self._swap(arg, short) for name, arg in node.kwargs.items()}
        if node.target in RESHAPES or node.target is aten.expand.default:
            extents: Any = args[1]
            args[1] = [1 if place == axis else one for place, one in enumerate(extents)]
        if node.target is aten.scaled_dot_product_attention.default:
            args, kwargs = self._attention(args, kwargs, call)
        self.chosen[node] = call(node.target, *args, **kwargs)

    def of(self, node: Node, axis: int, call: Any) -> Node:
        """The chosen token of each row of a tensor whose tokens lie on `axis`."""
        if node in self.chosen:
            return self.chosen[node]
        if (node, axis) not in self.picked:
            self.picked[node, axis] = self._pick(node, axis, call)
        return self.picked[node, axis]

    def _pick(self, node: Node, axis: int, call: Any) -> Node:
        shape = tensor(node).shape
        if axis == 0 or str(shape[0]) == "1":
            # One table for all rows: [1, ..., tokens, ...] -> [batch, ..., 1, ...].
            rows = call(aten.flatten.using_ints, self.index)
            taken = call(aten.index_select.default, node, axis, rows)
            return call(aten.transpose.int, taken, 0, axis)
        index = call(aten.reshape.default, self.index, [-1, *[1] * (len(shape) - 1)])
        extents: list[Any] = [-1]
        for place in range(1, len(shape)):
            fixed: Any = 1 if place == axis else shape[place]
            extents.append(
                fixed if isinstance(fixed, int) else call(aten.sym_size.int, node, place)
            )
        return call(aten.gather.default, node, axis, call(aten.expand.default, index, extents))

    def _attention(
        self, args: list[Any], kwargs: dict[str, Any], call: Any
    ) -> tuple[list[Any], dict[str, Any]]:
        """A causal query that is not the last of its row sees the keys up to itself."""
        causal = args[5] if len(args) > 5 else kwargs.get("is_causal", False)
        if not causal:
            return args, kwargs
        extent = call(aten.sym_size.int, args[1], 2)
        place = call(aten.arange.default, extent, device="cpu")
        index = call(aten.unsqueeze.default, self.index, 3)
        seen = call(aten.le.Tensor, place, index)
        rest = {name: value for name, value in kwargs.items() if name != "is_causal"}
        dropout = args[4] if len(args) > 4 else 0.0
        return [*args[:3], seen, dropout, False, *args[6:]], rest

    def _swap(self, argument: Any, short: dict[Node, Node]) -> Any:
        if isinstance(argument, Node):
            return short.get(argument, argument)
        items: Any = argument
        if isinstance(argument, (list, tuple)):
            return [self._swap(item, short) for item in items]
        return argument
