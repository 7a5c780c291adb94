"""Rotary position embedding (Su et al., 2021), in the half-split form of Llama."""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Cosines and sines for positions [batch, tokens]: each [batch, 1, tokens, head_dim]."""

    def __init__(self, *, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.base = base

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_dim, 2, device=positions.device).float()
        frequencies = 1.0 / (self.base ** (exponents / self.head_dim))
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates [batch, heads, tokens, head_dim] by the angles of its positions."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
