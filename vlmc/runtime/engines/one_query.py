"""Attention of one token as sums of products, on CPUs.

torch's kernel for a CPU takes memory for itself and for its result at each call, and packs keys and
values of 16 bits anew for its products of matrices. For the one query of a step, sums over keys and
values as they lie in memory, which torch's compiler makes loops of, take no longer in fp32 and a
fraction of the time in 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch

SHARED_BY = 16
"""Queries of one key at most: as many as query heads share it in a step."""


def sum_attention(graph: Any) -> int:
    """Has attention of one token in a torch.fx graph computed as sums, in fp32; how often there was
    any."""
    aten: Any = torch.ops.aten
    found = [
        node
        for node in graph.nodes
        if node.target is aten.scaled_dot_product_attention.default and _of_one_token(node)
    ]
    for node in found:
        with graph.inserting_before(node):
            attended = _sums(graph, *node.args[:4], scale=node.kwargs.get("scale"))
        node.replace_all_uses_with(attended)
        graph.erase_node(node)
    return len(found)


def _of_one_token(attention: torch.fx.Node) -> bool:
    query: Any = attention.args[0]
    rows = query.meta["val"].shape[2]
    # Sums know no dropout, no causal mask and no heads that share keys.
    plain = not any(attention.args[4:]) and not attention.kwargs.get("enable_gqa")
    return plain and isinstance(rows, int) and rows <= SHARED_BY


def _sums(
    graph: Any,
    query: torch.fx.Node,
    key: torch.fx.Node,
    value: torch.fx.Node,
    attn_mask: torch.fx.Node | None = None,
    *,
    scale: float | None = None,
) -> torch.fx.Node:
    """Nodes in place of an attention with these arguments. A query that sees nothing attends to
    nothing, as in torch's kernel."""
    aten: Any = torch.ops.aten

    def call(operator: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        made: torch.fx.Node = graph.call_function(operator, args, kwargs)
        values = [one.meta["val"] if isinstance(one, torch.fx.Node) else one for one in args]
        made.meta["val"] = operator(*values, **kwargs)
        return made

    def wide(one: torch.fx.Node) -> torch.fx.Node:
        narrow = one.meta["val"].dtype is not torch.float32
        return call(aten.to.dtype, one, torch.float32) if narrow else one

    def product(left: torch.fx.Node, right: torch.fx.Node, axis: int) -> torch.fx.Node:
        """Summed over `axis` of [batch, heads, queries, keys, head_dim]. The compiler multiplies in
        fp32 what has 16 bits, and rounds nothing within a loop; told to, it would store it."""
        both = call(aten.mul.Tensor, left, right)
        return call(aten.sum.dim_IntList, both, [axis], dtype=torch.float32)

    like = query.meta["val"]
    by_key = [call(aten.unsqueeze.default, one, 2) for one in (key, value)]
    scores = product(call(aten.unsqueeze.default, query, 3), by_key[0], 4)
    scores = call(aten.mul.Tensor, scores, like.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None and attn_mask.meta["val"].dtype is torch.bool:
        scores = call(aten.where.ScalarOther, attn_mask, scores, float("-inf"))
    elif attn_mask is not None:
        scores = call(aten.add.Tensor, scores, wide(attn_mask))
    least = torch.finfo(torch.float32).min
    largest = call(aten.clamp.default, call(aten.amax.default, scores, [-1], True), least)
    parts = call(aten.exp.default, call(aten.sub.Tensor, scores, largest))
    # 1 at least where a key is seen: that of the largest score.
    whole = call(aten.clamp.default, call(aten.sum.dim_IntList, parts, [-1], True), 1.0)
    attended = product(call(aten.unsqueeze.default, parts, 4), by_key[1], 3)
    return call(aten.to.dtype, call(aten.div.Tensor, attended, whole), like.dtype)
