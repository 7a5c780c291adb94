"""What rules read of a plan, and what they say of it."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks of one stack that a stage holds, `last` included."""

    block: str
    first: int
    last: int

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of its modules."""
        if "*" not in self.block:
            return (self.block,)
        return tuple(self.block.replace("*", str(n)) for n in range(self.first, self.last + 1))


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
    stages: tuple[tuple[int, tuple[Held, ...]], ...]
    """Group, and what is held."""

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
