"""A training run: steps of an optimiser over an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.batches import Row
from vlmc.runtime.parallel.engine import Engine
from vlmc.runtime.parallel.saved import load_training, save_training


class Training:
    """Trains what the plan trains. Frozen parameters have no place in the optimiser."""

    def __init__(self, engine: Engine, *, learning_rate: float) -> None:
        self.engine = engine
        self.steps = 0
        trained = [p for s in engine.stages for p in s.parameters() if p.requires_grad]
        # One call over many tensors needs them to be of one kind.
        alike = len({(isinstance(p, DTensor), getattr(p, "device_mesh", None)) for p in trained})
        made = torch.optim.AdamW if engine.plan.optimiser == "adamw" else torch.optim.SGD
        given = trained or [torch.zeros((), requires_grad=True)]  # a rank whose stages are frozen
        self.optimiser: torch.optim.Optimizer = made(
            given, lr=learning_rate, foreach=None if alike == 1 else False
        )

    def step(self, rows: Sequence[Row]) -> float:
        """One step over the sequences of a batch: the mean loss before it."""
        self.optimiser.zero_grad()
        loss = self.engine.step(rows)
        self.optimiser.step()
        self.steps += 1
        return loss

    def save(self, folder: Path) -> None:
        """Writes a checkpoint that any plan of this design goes on from."""
        about = {"steps": self.steps, "design": self.engine.parts.name}
        save_training(folder, self.engine.parameters(), self.optimiser, about)

    def resume(self, folder: Path) -> None:
        """Goes on from a checkpoint. Raises UsageError for one of another design."""
        about = load_training(folder, self.engine.parameters(), self.optimiser)
        if about.get("design") != self.engine.parts.name:
            raise UsageError(f"{folder} is a checkpoint of {about.get('design')}")
        self.steps = int(about["steps"])
