"""Seeded weights: what a model starts from where no checkpoint is given."""

from __future__ import annotations

import zlib

import torch
from torch import nn


def initialise(model: nn.Module, *, seed: int, open_gates: bool = False) -> None:
    """Fills every parameter in place, each from its own name, so that the order of modules and the
    device do not matter.

    Matrices are normal with standard deviation 1/sqrt(fan-in), embeddings and positions 0.02,
    norms 1, biases of projections 0, gates 0 as published (Flamingo starts as its language model),
    or 1 with `open_gates` so that a twin shows that images matter.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:  # its values come from elsewhere
            continue
        leaf = name.rsplit(".", 1)[-1]
        with torch.no_grad():
            if leaf.endswith("gate") or leaf == "skip_gain":
                parameter.fill_(1.0 if open_gates else 0.0)
            elif leaf == "gain" or (leaf == "weight" and parameter.ndim == 1):
                parameter.fill_(1.0)
            elif leaf == "bias":
                parameter.zero_()
            else:
                matrix = leaf == "weight" and id(parameter) not in embeddings
                fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
                std = fan_in**-0.5 if matrix else 0.02
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
                draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter.copy_(draw.mul_(std))
