"""Pointwise activations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Activation(nn.Module):
    """A pointwise nonlinearity, of any shape."""

    def __init__(self, *, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "gelu":
            return F.gelu(x)
        if self.kind == "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        if self.kind == "quick_gelu":
            # The approximation that CLIP was trained with.
            return x * torch.sigmoid(1.702 * x)
        if self.kind == "silu":
            return F.silu(x)
        if self.kind == "relu":
            return F.relu(x)
        if self.kind == "relu_squared":
            # So et al., 2021 (Primer), section 3.
            return F.relu(x).square()
        raise ValueError(f"unknown activation {self.kind!r}")
