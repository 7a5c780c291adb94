"""What rules read of a plan, and what they say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Degrees:
    """Ranks = pipeline x data x tensor; tensor neighbours are adjacent."""

    pipeline: int
    data: int
    tensor: int

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.pipeline * self.data * self.tensor


def encoder_degree(placement: str, encoder: int | None, tensor: int) -> int:
    """Ranks over which encoder and adapter are split: a tensor group, unless they are replicated
    within it; then as many as the plan says, or one."""
    return (encoder or 1) if placement == "replicated" else tensor


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks of one stack that a stage holds, `last` included."""

    block: str
    first: int
    last: int

    def related(self, path: str) -> bool:
        """Whether a path is one of its modules, lies within one or around one. Numbers are
        compared, not listed: a range read from a file may be of any length."""
        for own, part in zip(self.block.split("."), path.split("."), strict=False):
            numbered = own == "*" and part.isdecimal() and self.first <= int(part) <= self.last
            if own != part and not numbered:
                return False
        return True

    @property
    def final(self) -> str:
        """Path of the last of its modules."""
        return self.block.replace("*", str(self.last))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruled:
    """Those fields of a plan that rules bind together, each of its own kind already."""

    trains: bool
    count: int
    per_node: int
    trained: tuple[str, ...]
    precision: str
    optimiser: str
    mesh: Degrees
    encoder: Degrees | None
    placement: str
    sequence_parallel: bool
    zero: int
    batch: int
    micro_batch: int
    schedule: str
    chunks: int
    checkpointing: Mapping[str, str]
    stages: tuple[tuple[int, tuple[Held, ...]], ...]
    """Group, and what is held."""

    @property
    def encoder_tensor(self) -> int:
        """Ranks over which encoder and adapter are split."""
        own = None if self.encoder is None else self.encoder.tensor
        return encoder_degree(self.placement, own, self.mesh.tensor)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step in each replica."""
        return self.batch // (self.mesh.data * self.micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A rule that a plan does not hold to."""

    code: str
    """Of the diagnostic."""
    path: tuple[str | int, ...]
    message: str
    expected: str
    got: str
    help: str
    related: tuple[tuple[str | int, ...], ...] = ()
