"""A decoder-only language model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlmc.components.shared.block import TransformerBlock
from vlmc.components.shared.cache import Cache, LayerCache
from vlmc.components.shared.masks import Places, places
from vlmc.components.shared.norm import Norm
from vlmc.components.shared.relative import RelativeBlock
from vlmc.components.shared.rotary import Rotary


@dataclass
class DecoderContext:
    """What every layer of one forward pass shares."""

    places: Places
    rotary: tuple[Tensor, Tensor] | None


class Decoder(nn.Module):
    """Decoder-only transformer: embeddings [batch, tokens, width] -> hidden states, same shape."""

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        hidden: int,
        vocabulary: int,
        added_vocabulary: int,
        norm: str,
        norm_eps: float,
        activation: str,
        gated: bool,
        qkv_bias: bool,
        output_bias: bool,
        mlp_bias: bool,
        positions: str,
        rotary_base: float,
        position_rows: int,
        position_offset: int,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.added_vocabulary = added_vocabulary
        self.positions = positions
        self.position_offset = position_offset
        self.embedding = nn.Embedding(vocabulary, width)
        self.added_embedding = nn.Embedding(added_vocabulary, width) if added_vocabulary else None
        self.position_embedding = None
        if positions == "learned":
            # As in OPT (Zhang et al., 2022).
            self.position_embedding = nn.Embedding(position_rows, width)
        self.rotary = None
        if positions == "rotary":
            # As in Llama (Touvron et al., 2023).
            self.rotary = Rotary(head_dim=head_dim, base=rotary_base)
        if positions == "transformer_xl":
            # As in Gopher and Chinchilla (Hoffmann et al., 2022, after Rae et al., 2021).
            self.layers = nn.ModuleList(
                RelativeBlock(
                    width=width,
                    heads=heads,
                    head_dim=head_dim,
                    hidden=hidden,
                    norm=norm,
                    norm_eps=norm_eps,
                    activation=activation,
                    gated=gated,
                    qkv_bias=qkv_bias,
                    output_bias=output_bias,
                    mlp_bias=mlp_bias,
                )
                for _ in range(layers)
            )
        else:
            self.layers = nn.ModuleList(
                TransformerBlock(
                    width=width,
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=head_dim,
                    hidden=hidden,
                    norm=norm,
                    norm_eps=norm_eps,
                    pre_norm=True,
                    activation=activation,
                    gated=gated,
                    qkv_bias=qkv_bias,
                    output_bias=output_bias,
                    mlp_bias=mlp_bias,
                )
                for _ in range(layers)
            )
        self.norm = Norm(width=width, kind=norm, eps=norm_eps)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings [batch, tokens, width] of token ids [batch, tokens]."""
        if self.added_embedding is None:
            return self.embedding(input_ids)
        added = input_ids >= self.vocabulary
        words = self.embedding(input_ids.masked_fill(added, 0))
        extra = self.added_embedding((input_ids - self.vocabulary).clamp(min=0))
        return torch.where(added[..., None], extra, words)

    def enter(
        self, x: Tensor, attention_mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, DecoderContext]:
        """Adds learned positions; makes the mask and the rotation that all layers share.

        `attention_mask` [batch, tokens so far] covers the tokens in the cache too; left out, it is
        the one before with the new tokens added. Raises ValueError for a mask of another length.
        """
        where = places(attention_mask, x, 0) if cache is None else cache.place(attention_mask, x)
        if self.position_embedding is not None:
            x = x + self.position_embedding(where.positions + self.position_offset)
        rotary = None if self.rotary is None else self.rotary(where.positions, x.dtype)
        return x, DecoderContext(where, rotary)

    def layer(
        self, index: int, x: Tensor, context: DecoderContext, cache: LayerCache | None
    ) -> Tensor:
        """Runs one block."""
        where = context.places
        if self.positions == "transformer_xl":
            return self.layers[index](x, places=where, cache=cache)
        return self.layers[index](
            x, mask=where.mask, causal=where.causal, rotary=context.rotary, cache=cache
        )

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        x, context = self.enter(x, attention_mask, cache)
        for index in range(len(self.layers)):
            x = self.layer(index, x, context, None if cache is None else cache.layers[index])
        return self.norm(x)
