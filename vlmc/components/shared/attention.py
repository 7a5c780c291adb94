"""Multi-head attention and the key/value cache."""

import torch.nn.functional as F
from torch import Tensor, nn

from vlmc.components.shared.norm import Norm
from vlmc.components.shared.rotary import rotate

KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention, self or cross, with grouped key/value heads.

    Queries come from `x` [batch, queries, width]; keys and values, made by `key_value` from
    [batch, keys, source_width], are each [batch, kv_heads, keys, head_dim], so that a cache can
    keep them. Vaswani et al., 2017; grouped heads: Ainslie et al., 2023. There are as many heads as
    the projections give, which ranks may share out.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        source_width: int,
        qkv_bias: bool,
        output_bias: bool,
        qk_norm: str | None = None,
        qk_norm_eps: float = 1e-6,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.scale = scale
        self.query = nn.Linear(width, heads * head_dim, bias=qkv_bias)
        self.key = nn.Linear(source_width, kv_heads * head_dim, bias=qkv_bias)
        self.value = nn.Linear(source_width, kv_heads * head_dim, bias=qkv_bias)
        self.output = nn.Linear(heads * head_dim, width, bias=output_bias)
        self.query_norm = None
        self.key_norm = None
        if qk_norm is not None:
            self.query_norm = Norm(width=head_dim, kind=qk_norm, eps=qk_norm_eps)
            self.key_norm = Norm(width=head_dim, kind=qk_norm, eps=qk_norm_eps)

    def key_value(self, source: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> KeyValue:
        key = self.key(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        value = self.value(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.key_norm is not None:
            key = self.key_norm(key)
        if rotary is not None:
            key = rotate(key, rotary)
        return key, value

    def forward(
        self,
        x: Tensor,
        key_value: KeyValue,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        query = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if self.query_norm is not None:
            query = self.query_norm(query)
        if rotary is not None:
            query = rotate(query, rotary)
        key, value = key_value
        if self.heads != self.kv_heads:
            key = key.repeat_interleave(self.heads // self.kv_heads, dim=1)
            value = value.repeat_interleave(self.heads // self.kv_heads, dim=1)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, scale=self.scale
        )
        return self.output(attended.transpose(1, 2).flatten(-2))
