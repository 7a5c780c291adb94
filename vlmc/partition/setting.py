"""A point of the space that is searched, all but the places of the cuts."""

from __future__ import annotations

from dataclasses import dataclass

from vlmc.partition.plan import Checkpointing, Placement, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Degrees and choices of a plan."""

    pipeline: int = 1
    data: int = 1
    tensor: int = 1
    sequence_parallel: bool = False
    zero: int = 0
    micro_batch: int = 1
    micro_batches: int = 1
    schedule: Schedule = "1f1b"
    chunks: int = 1
    keeps: tuple[tuple[str, Checkpointing], ...] = ()
    """Checkpointing by kind of block, in the report's names, where it is not `none`."""
    placement: Placement = "spread"
    encoder_tensor: int | None = None
    """Ranks over which encoder and adapter are split where they are `replicated`; else None, for
    all of a tensor group."""

    @property
    def vision(self) -> int:
        """Ranks over which encoder and adapter are split."""
        return self.encoder_tensor or self.tensor

    @property
    def copies(self) -> int:
        """Of encoder and adapter in a tensor group, which share the images out."""
        return self.tensor // self.vision

    @property
    def costed(self) -> tuple[int, int, bool, int]:
        """What the costs of blocks go by."""
        return self.micro_batch, self.tensor, self.sequence_parallel, self.vision

    @property
    def stages(self) -> int:
        """All stages along the pipeline."""
        return self.pipeline * self.chunks

    def kept(self, kind: str) -> Checkpointing:
        """Checkpointing of a kind of block."""
        for name, word in self.keeps:
            if name == kind:
                return word
        return "none"
