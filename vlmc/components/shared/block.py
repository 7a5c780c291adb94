"""The transformer block."""

from torch import Tensor, nn

from vlmc.components.shared.attention import Attention, KeyValue
from vlmc.components.shared.cache import LayerCache
from vlmc.components.shared.mlp import MLP
from vlmc.components.shared.norm import Norm


class TransformerBlock(nn.Module):
    """A transformer block, each of its parts a residual branch: [batch, tokens, width]."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        hidden: int,
        norm: str,
        norm_eps: float,
        pre_norm: bool,
        activation: str,
        gated: bool,
        qkv_bias: bool,
        output_bias: bool,
        mlp_bias: bool,
        cross_width: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention_norm = Norm(width=width, kind=norm, eps=norm_eps)
        self.attention = Attention(
            width=width,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            source_width=width,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            scale=scale,
        )
        self.cross_norm = None
        self.cross = None
        if cross_width is not None:
            self.cross_norm = Norm(width=width, kind=norm, eps=norm_eps)
            self.cross = Attention(
                width=width,
                heads=heads,
                kv_heads=heads,
                head_dim=head_dim,
                source_width=cross_width,
                qkv_bias=qkv_bias,
                output_bias=output_bias,
                scale=scale,
            )
        self.mlp_norm = Norm(width=width, kind=norm, eps=norm_eps)
        self.mlp = MLP(
            width=width, hidden=hidden, activation=activation, gated=gated, bias=mlp_bias
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
        memory: KeyValue | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        inner = self.attention_norm(x) if self.pre_norm else x
        key_value = self.attention.key_value(inner, rotary)
        if cache is not None:
            key_value = cache.append(key_value)
        x = x + self.attention(inner, key_value, mask=mask, causal=causal, rotary=rotary)
        if not self.pre_norm:
            x = self.attention_norm(x)
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            inner = self.cross_norm(x) if self.pre_norm else x
            x = x + self.cross(inner, memory, mask=memory_mask)
            if not self.pre_norm:
                x = self.cross_norm(x)
        inner = self.mlp_norm(x) if self.pre_norm else x
        x = x + self.mlp(inner)
        return x if self.pre_norm else self.mlp_norm(x)
