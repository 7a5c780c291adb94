"""How tensor parallelism may split a block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vlmc.analysis.spans import Where
from vlmc.components.shared.attention import Attention
from vlmc.components.shared.mlp import MLP
from vlmc.components.shared.relative import RelativeAttention

COLUMNS = ("query", "key", "value", "distance", "gate", "up")
"""Projections whose outputs tensor parallelism divides: heads, or channels of an MLP."""
ROWS = ("output", "down")
"""Projections whose inputs it divides: their outputs are whole again, after an all-reduce."""


def is_split(model: Any, path: str) -> bool:
    """Whether tensor parallelism divides what a module computes: what lies within attention and
    MLPs, up to the projection that ends them."""
    if path == "head.projection":
        return True
    names = path.split(".")
    for depth in range(1, len(names) + 1):
        module = model.get_submodule(".".join(names[:depth]))
        if isinstance(module, (Attention, RelativeAttention, MLP)):
            return names[-1] not in ROWS
    return False


def is_sum(model: Any, path: str) -> bool:
    """Whether a parameter is the bias of a projection that ends what tensor parallelism divides: it
    is added to a sum over all devices."""
    projection, _, kind = path.rpartition(".")
    owner, _, name = projection.rpartition(".")
    divided = (Attention, RelativeAttention, MLP)
    return kind == "bias" and name in ROWS and isinstance(model.get_submodule(owner), divided)


def divided_along(path: str) -> int:
    """The dimension along which tensor parallelism divides a parameter of what it splits; -1 of one
    that it leaves whole."""
    module, _, kind = path.rpartition(".")
    leaf = module.rpartition(".")[2]
    if path == "head.projection.weight" or leaf in COLUMNS or kind.endswith("_bias"):
        return 0
    return 1 if leaf in ROWS and kind == "weight" else -1


def rows(parameters: Iterable[nn.Parameter]) -> tuple[int, ...]:
    """First dimension of each; 0 of a single number."""
    return tuple(one.shape[0] if one.ndim else 0 for one in parameters)


def shape(
    model: Any, where: Where, parameters: list[tuple[str, nn.Parameter]]
) -> tuple[tuple[int, ...], int, int]:
    """What a degree of tensor parallelism must divide, parameters that it divides, and all-reduces
    of the forward pass."""
    name, number = where
    if name == "head" and any(path == "head.projection.weight" for path, _ in parameters):
        projection = next(one for path, one in parameters if path == "head.projection.weight")
        return (projection.shape[0],), projection.numel(), 1
    if not name.endswith(".*"):
        return (1,), 0, 0
    block = model.get_submodule(f"{name[:-1]}{number}")
    limits: set[int] = set()
    branches = 0
    for module in block.modules():
        if isinstance(module, Attention):
            limits |= {module.heads, module.kv_heads}
        elif isinstance(module, RelativeAttention):
            limits.add(module.query.out_features // module.head_dim)
        elif isinstance(module, MLP):
            limits.add(module.up.out_features)
        else:
            continue
        branches += 1
    if not branches:
        return (1,), 0, 0
    split = 0
    for path, one in parameters:
        split += one.numel() if divided_along(path) >= 0 else 0
    return tuple(sorted(limits)), split, branches
