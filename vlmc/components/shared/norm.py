"""Normalisation over the last dimension."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """Normalisation over the last dimension: [..., width]."""

    def __init__(self, *, width: int, kind: str, eps: float) -> None:
        super().__init__()
        self.width = width
        self.kind = kind
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)
        # RMSNorm (Zhang and Sennrich, 2019): the mean square is taken in fp32 whatever x is.
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * exact.to(x.dtype)
