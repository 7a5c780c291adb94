"""How replicas share parameters out: FSDP2 gives each whole rows, and as many as the first has."""

from __future__ import annotations

from collections.abc import Iterable

from vlmc.analysis.report import Block

Shapes = tuple[tuple[int, int], ...]
"""Rows of each parameter (0 of a single number), and numbers of a row."""


def shapes_of(block: Block, degree: int) -> Shapes:
    """Of a device's parameters of a block that tensor parallelism divides by a degree."""
    known = zip(shapes(block.tensors, block.rows), block.split_along, strict=True)
    return tuple(
        (-(-rows // degree) if along == 0 else rows, width // degree if along == 1 else width)
        for place, ((rows, width), along) in enumerate(known)
        if place not in block.lent
    )


def shapes(tensors: Iterable[int], rows: Iterable[int]) -> Shapes:
    """Of parameters of so many numbers and rows."""
    return tuple((own, size // max(1, own)) for size, own in zip(tensors, rows, strict=True))


def padded(found: Shapes, shards: int) -> int:
    """Numbers that replicas gather or scatter, filled up to equal shares. Single numbers are not
    shared out."""
    return sum(-(-rows // shards) * shards * width for rows, width in found)


def first_share(found: Shapes, shards: int) -> int:
    """Numbers of the first replica."""
    return sum(-(-rows // shards) * width if rows else 1 for rows, width in found)


def single(found: Shapes) -> int:
    """Parameters that are single numbers."""
    return sum(not rows for rows, _ in found)
