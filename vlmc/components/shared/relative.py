"""Relative attention of Transformer-XL (Dai et al., 2019, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmc.components.shared.cache import LayerCache
from vlmc.components.shared.masks import Places
from vlmc.components.shared.mlp import MLP
from vlmc.components.shared.norm import Norm


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of positions [tokens]: [tokens, width]."""
    exponents = torch.arange(0, width, 2, device=positions.device).float() / width
    angles = positions[:, None].float() / 10000.0**exponents
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class RelativeAttention(nn.Module):
    """Causal attention whose scores depend on the distance of query and key.

    score = ((q + u) . k + (q + v) . W r(distance)) / sqrt(head_dim): [batch, tokens, width].
    """

    def __init__(
        self, *, width: int, heads: int, head_dim: int, qkv_bias: bool, output_bias: bool
    ) -> None:
        super().__init__()
        self.width = width
        self.head_dim = head_dim
        self.query = nn.Linear(width, heads * head_dim, bias=qkv_bias)
        self.key = nn.Linear(width, heads * head_dim, bias=qkv_bias)
        self.value = nn.Linear(width, heads * head_dim, bias=qkv_bias)
        self.distance = nn.Linear(width, heads * head_dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, 1, head_dim))
        self.distance_bias = nn.Parameter(torch.zeros(heads, 1, head_dim))
        self.output = nn.Linear(heads * head_dim, width, bias=output_bias)

    def split(self, x: Tensor) -> Tensor:
        """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor, places: Places, cache: LayerCache | None) -> Tensor:
        query = self.split(self.query(x))
        key, value = self.split(self.key(x)), self.split(self.value(x))
        if cache is not None:
            key, value = cache.append((key, value))
        keys = key.shape[2]
        # Column c of `by_distance` is the score at distance c; a query at position i reads column
        # i - j for the key at position j.
        distances = sinusoids(torch.arange(keys, device=x.device), self.width).to(x.dtype)
        by_distance = (query + self.distance_bias) @ self.split(self.distance(distances)[None]).mT
        distance = places.positions[:, None, :, None] - places.keys[:, None, None, :]
        index = distance.clamp(min=0).expand(*by_distance.shape[:2], -1, -1)
        bias = by_distance.gather(-1, index) * self.head_dim**-0.5
        seen = distance >= 0 if places.mask is None else places.mask
        bias = bias.masked_fill(~seen, float("-inf"))
        attended = F.scaled_dot_product_attention(
            query + self.content_bias, key, value, attn_mask=bias
        )
        return self.output(attended.transpose(1, 2).flatten(-2))


class RelativeBlock(nn.Module):
    """A pre-norm transformer block with relative attention: [batch, tokens, width]."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        head_dim: int,
        hidden: int,
        norm: str,
        norm_eps: float,
        activation: str,
        gated: bool,
        qkv_bias: bool,
        output_bias: bool,
        mlp_bias: bool,
    ) -> None:
        super().__init__()
        self.attention_norm = Norm(width=width, kind=norm, eps=norm_eps)
        self.attention = RelativeAttention(
            width=width,
            heads=heads,
            head_dim=head_dim,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
        )
        self.mlp_norm = Norm(width=width, kind=norm, eps=norm_eps)
        self.mlp = MLP(
            width=width, hidden=hidden, activation=activation, gated=gated, bias=mlp_bias
        )

    def forward(self, x: Tensor, *, places: Places, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), places, cache)
        return x + self.mlp(self.mlp_norm(x))
