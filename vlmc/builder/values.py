"""The values of a model: from a checkpoint, from one for each part, or from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from vlmc.builder.checkpoint import (
    assign,
    check_checkpoint,
    load_checkpoint,
    load_part,
    owners,
)
from vlmc.builder.model import instantiate
from vlmc.builder.seed import initialise
from vlmc.builder.weights import check_weights, load_weights
from vlmc.ir import ROLES, Arch, Role


def check_values(
    arch: Arch, *, checkpoint: Path | None = None, parts: Mapping[Role, Path] | None = None
) -> None:
    """Raises as `valued` does where the folders are not of the design. Reads no values."""
    model = instantiate(arch)
    if checkpoint is not None and (checkpoint / "manifest.json").is_file():
        check_weights(model, checkpoint / "weights")
    elif checkpoint is not None:
        check_checkpoint(model, arch, checkpoint)
    else:
        for role, folder in (parts or {}).items():
            check_checkpoint(model, arch, folder, role)


def valued(
    arch: Arch,
    *,
    checkpoint: Path | None = None,
    parts: Mapping[Role, Path] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The model of `arch` with values, on `device`.

    All of them from `checkpoint` where there is one: a Hugging Face folder, or a build of ours with
    weights. Otherwise each part in `parts` from its own checkpoint folder and the rest seeded (a
    twin with its gates open, so that images matter). `dtype` None keeps a checkpoint's type; seeded
    values are then fp32.

    Raises UsageError where a folder is not a checkpoint of the design, EnvironmentFault where it
    is damaged.
    """
    model = instantiate(arch)
    if checkpoint is not None and (checkpoint / "manifest.json").is_file():
        return load_weights(model, checkpoint / "weights", dtype=dtype, device=device)
    if checkpoint is not None:
        return load_checkpoint(model, arch, checkpoint, dtype=dtype, device=device)
    given = parts or {}
    where = owners(model)
    for name, parameter in model.named_parameters():
        first = name.split(".")[0]
        if first not in given or first not in ROLES:
            # Not empty_like: of a parameter without values it loads all of torch's compiler.
            values = torch.empty(parameter.shape, device=device, dtype=dtype or parameter.dtype)
            assign(where[name], values)
    initialise(model, seed=seed, open_gates=arch.mini)
    for role, folder in given.items():
        load_part(model, arch, role, folder, dtype=dtype, device=device)
    return model
