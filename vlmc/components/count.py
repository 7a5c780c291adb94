"""How many parameters the shared modules have: the arithmetic beside `components/shared`."""

from __future__ import annotations


def linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """An `nn.Linear`."""
    return inputs * outputs + (outputs if bias else 0)


def norm(width: int, kind: str) -> int:
    """A `Norm`: LayerNorm has scale and shift, RMSNorm the scale only."""
    return 2 * width if kind == "layer" else width


def attention(
    width: int,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    source_width: int,
    qkv_bias: bool,
    output_bias: bool,
    qk_norm: str | None = None,
) -> int:
    """An `Attention`: query, key, value and output projections and per-head norms."""
    return (
        linear(width, heads * head_dim, bias=qkv_bias)
        + 2 * linear(source_width, kv_heads * head_dim, bias=qkv_bias)
        + linear(heads * head_dim, width, bias=output_bias)
        + (2 * norm(head_dim, qk_norm) if qk_norm else 0)
    )


def mlp(width: int, hidden: int, *, gated: bool, bias: bool) -> int:
    """An `MLP`: up and down projections, and the gate of a gated one."""
    up = linear(width, hidden, bias=bias) * (2 if gated else 1)
    return up + linear(hidden, width, bias=bias)


def block(
    width: int,
    *,
    heads: int,
    hidden: int,
    norm_kind: str,
    gated: bool,
    qkv_bias: bool,
    output_bias: bool,
    mlp_bias: bool,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    cross_width: int | None = None,
) -> int:
    """A `TransformerBlock`: self-attention, cross-attention where it has one, MLP, their norms."""
    head_dim = head_dim or width // heads
    total = attention(
        width,
        heads=heads,
        kv_heads=kv_heads or heads,
        head_dim=head_dim,
        source_width=width,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
    )
    total += 2 * norm(width, norm_kind) + mlp(width, hidden, gated=gated, bias=mlp_bias)
    if cross_width is not None:
        total += norm(width, norm_kind) + attention(
            width,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            source_width=cross_width,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
        )
    return total
