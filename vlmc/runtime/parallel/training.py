"""A training run: steps of an optimiser over an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.batches import Row
from vlmc.runtime.parallel.engine import Engine
from vlmc.runtime.parallel.saved import load_training, said_of, save_training


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
        about = {"steps": self.steps, **self._design(), **self._kind()}
        save_training(folder, self.engine.parameters(), self.optimiser, about)

    def resume(self, folder: Path) -> bool:
        """Goes on from a checkpoint. Where that trained other parts, or with another optimiser, as
        an earlier stage did, its weights are taken and its steps are not; whether they were. Raises
        UsageError for one of another design."""
        about = said_of(folder)
        if any(about.get(key, value) != value for key, value in self._design().items()):
            raise UsageError(
                f"{folder} is a checkpoint of another design: {about.get('design')} "
                f"({str(about.get('spec', ''))[:12]})"
            )
        alike = all(about.get(key, value) == value for key, value in self._kind().items())
        load_training(folder, self.engine.parameters(), self.optimiser if alike else None)
        self.steps = int(about["steps"]) if alike else 0
        return alike

    def _design(self) -> dict[str, Any]:
        return {"design": self.engine.parts.name, "spec": self.engine.parts.spec}

    def _kind(self) -> dict[str, Any]:
        """What the optimiser's state belongs to."""
        plan = self.engine.plan
        return {"trained": sorted(plan.trained), "optimiser": plan.optimiser}
