"""Projections of the same input become one: query, key and value; gate and up.

One product of a matrix three times as tall reads its input once and fills the machine better
(Shoeybi et al., 2019, Megatron-LM, section 3, store them so from the start). The merged matrix is
a constant whose parts lie in the order of the weights' file, so that it costs no second copy.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from vlmc.capture.graph import Stored
from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import counted

aten: Any = torch.ops.aten

FAMILIES = (("query", "key", "value"), ("key", "value"), ("gate", "up"))
"""Names of sibling projections in the order in which their weights are stored; larger first, for
the queries of cross-attention have another input."""


def merge_projections(draft: Draft) -> str:
    merged = 0
    for family in FAMILIES:
        for siblings in _siblings(draft, family):
            _merge(draft, siblings, family)
            merged += len(siblings)
    if not merged:
        return ""
    after = len(draft.calls(aten.linear.default))
    return f"{counted(merged, 'projection')} merged; {counted(after, 'linear')} left"


def _siblings(draft: Draft, family: Sequence[str]) -> list[list[Node]]:
    """Linears of one module, one for each name of `family`, that read the same input and whose
    constants nobody else reads."""
    sharing: dict[tuple[str, Node], dict[str, Node]] = {}
    for linear in draft.calls(aten.linear.default):
        target = draft.targets.get(_argument(linear, 1))
        if target is None:
            continue
        module, _, name = target.removesuffix(".weight").rpartition(".")
        if name in family and target.endswith(".weight"):
            sharing.setdefault((module, _argument(linear, 0)), {})[name] = linear
    complete = [by_name for by_name in sharing.values() if len(by_name) == len(family)]
    groups = [[by_name[name] for name in family] for by_name in complete]
    return [group for group in groups if _alike(draft, group)]


def _alike(draft: Draft, linears: Sequence[Node]) -> bool:
    widths = {len(linear.args) for linear in linears}
    own = [constant for linear in linears for constant in linear.args[1:]]
    return len(widths) == 1 and all(
        isinstance(constant, Node)
        and constant in draft.targets
        and len(constant.users) == 1
        and isinstance(draft.constants[draft.targets[constant]], Stored)
        for constant in own
    )


def _merge(draft: Draft, linears: Sequence[Node], family: Sequence[str]) -> None:
    first = min(linears)
    constants = [
        _joined(draft, [_argument(linear, index) for linear in linears], "_".join(family))
        for index in range(1, len(first.args))
    ]
    sizes = [tensor(linear).shape[-1] for linear in linears]
    with draft.before(first) as call:
        product = call(aten.linear.default, first.args[0], *constants)
        pieces = call(aten.split_with_sizes.default, product, sizes, -1)
        for index, linear in enumerate(linears):
            draft.replace(linear, call(operator.getitem, pieces, index))
    for linear in linears:
        parts = [constant for constant in linear.args[1:] if isinstance(constant, Node)]
        draft.nodes.erase_node(linear)
        for part in parts:
            draft.remove_constant(part)


def _joined(draft: Draft, constants: Sequence[Node], name: str) -> Node:
    """A constant of the rows of several, one after the other."""
    target = draft.targets[constants[0]]
    module, _, kind = target.rpartition(".")
    parts = [part for one in constants for part in _parts(draft, one)]
    rows = sum(tensor(one).shape[0] for one in constants)
    return draft.add_constant(
        f"{module.rpartition('.')[0]}.{name}.{kind}",
        tensor(constants[0]),
        (rows, *tensor(constants[0]).shape[1:]),
        Stored(parts=tuple(parts)),
        before=min(constants),
    )


def _parts(draft: Draft, constant: Node) -> tuple[str, ...]:
    return draft.constants[draft.targets[constant]].parts


def _argument(node: Node, index: int) -> Any:
    return node.args[index]
