"""Distributed checkpoints: written by any plan, read by any other of the same design."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.untyped import DISTRIBUTED, STORAGE

_ABOUT = "training.json"


def save_training(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    about: Mapping[str, Any],
) -> None:
    """Writes weights and the optimiser's state, each rank its share; `about` beside them."""
    STORAGE.save(_state(parameters, optimiser), checkpoint_id=str(folder))
    if DISTRIBUTED.get_rank() == 0:
        (folder / _ABOUT).write_text(json.dumps(dict(about)))
    DISTRIBUTED.barrier()


def said_of(folder: Path) -> dict[str, Any]:
    """What was said about a checkpoint. Raises UsageError where there is none."""
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no checkpoint of a training run: {error}") from None
    return about


def load_training(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer | None,
) -> None:
    """Puts what `save_training` wrote into place, whatever plan wrote it: weights, and the state of
    the optimiser, if one is given."""
    STORAGE.load(_state(parameters, optimiser), checkpoint_id=str(folder))


def _state(
    parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Tensors of a checkpoint by name: weights, and what the optimiser keeps of the trained ones
    (made first where no step was taken yet)."""
    state: dict[str, Any] = {f"model.{name}": p.detach() for name, p in parameters.items()}
    if optimiser is None:
        return state
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            for what, value in _kept(optimiser, parameter).items():
                state[f"optimiser.{name}.{what}"] = value
    return state


def _kept(optimiser: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    own: dict[str, Any] = optimiser.state[parameter]
    if not own and isinstance(optimiser, torch.optim.AdamW):
        own["step"] = torch.zeros(())
        own["exp_avg"] = torch.zeros_like(parameter)
        own["exp_avg_sq"] = torch.zeros_like(parameter)
    return {what: value for what, value in own.items() if isinstance(value, Tensor)}
