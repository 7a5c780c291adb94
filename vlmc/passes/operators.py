"""What kinds of operators there are."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

aten: Any = torch.ops.aten


def writes(node: Node) -> bool:
    """Whether a call changes a tensor in place."""
    schema: Any = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def is_view(node: Node) -> bool:
    """Whether a call gives its first argument in another shape; as a rule without a copy."""
    if node.target is aten.to.dtype:
        return False
    schema: Any = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return False
    return any(one.alias_info is not None for one in schema.returns)


def is_random(node: Node) -> bool:
    """Whether a call draws random numbers."""
    tags: Any = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags
