"""The values of a captured graph's constants."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlmc.capture.graph import Constant, Stored


def value(constant: Constant, weights: Mapping[str, Tensor]) -> Tensor:
    """The values of a constant, from those of the model's weights by name."""
    parts = [weights[part].detach() for part in constant.parts]
    if isinstance(constant, Stored):
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    with torch.no_grad():
        return constant.compute(*parts)
