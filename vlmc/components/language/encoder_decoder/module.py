"""An encoder-decoder language model."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from vlmc.components.shared.attention import KeyValue
from vlmc.components.shared.block import TransformerBlock
from vlmc.components.shared.cache import Cache
from vlmc.components.shared.masks import padding_mask, places
from vlmc.components.shared.norm import Norm
from vlmc.components.shared.position_bias import PositionBias


class EncoderDecoder(nn.Module):
    """T5 (Raffel et al., 2020): embeddings [batch, source, width] and decoder tokens [batch,
    target] -> hidden states of the decoder [batch, target, width].

    RMSNorm before each branch, no biases, attention scores without a scale, and a relative position
    bias that all layers of a stack share. T5 v1.1 and Flan-T5 have a gated MLP.
    """

    def __init__(
        self,
        *,
        width: int,
        encoder_layers: int,
        decoder_layers: int,
        heads: int,
        head_dim: int,
        hidden: int,
        vocabulary: int,
        norm_eps: float,
        activation: str,
        gated: bool,
        buckets: int,
        max_distance: int,
        start_token: int,
        pad_token: int,
    ) -> None:
        super().__init__()
        self.start_token = start_token
        self.pad_token = pad_token
        self.embedding = nn.Embedding(vocabulary, width)
        self.encoder_bias = PositionBias(
            heads=heads, buckets=buckets, max_distance=max_distance, bidirectional=True
        )
        self.encoder_layers = nn.ModuleList(
            TransformerBlock(
                width=width,
                heads=heads,
                kv_heads=heads,
                head_dim=head_dim,
                hidden=hidden,
                norm="rms",
                norm_eps=norm_eps,
                pre_norm=True,
                activation=activation,
                gated=gated,
                qkv_bias=False,
                output_bias=False,
                mlp_bias=False,
                scale=1.0,
            )
            for _ in range(encoder_layers)
        )
        self.encoder_norm = Norm(width=width, kind="rms", eps=norm_eps)
        self.decoder_bias = PositionBias(
            heads=heads, buckets=buckets, max_distance=max_distance, bidirectional=False
        )
        self.decoder_layers = nn.ModuleList(
            TransformerBlock(
                width=width,
                heads=heads,
                kv_heads=heads,
                head_dim=head_dim,
                hidden=hidden,
                norm="rms",
                norm_eps=norm_eps,
                pre_norm=True,
                activation=activation,
                gated=gated,
                qkv_bias=False,
                output_bias=False,
                mlp_bias=False,
                cross_width=width,
                scale=1.0,
            )
            for _ in range(decoder_layers)
        )
        self.decoder_norm = Norm(width=width, kind="rms", eps=norm_eps)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings [batch, tokens, width] of token ids [batch, tokens]."""
        return self.embedding(input_ids)

    def begin(self, labels: Tensor | None, x: Tensor | None) -> Tensor:
        """What the decoder reads to be asked for `labels` [batch, target]: its start token, then
        all labels but the last (-100 is read as padding). Without labels, the start token
        [batch, 1] for each row of `x`."""
        if labels is not None:
            start = torch.full_like(labels[:, :1], self.start_token)
            shifted = torch.cat((start, labels[:, :-1]), dim=1)
            return shifted.masked_fill(shifted == -100, self.pad_token)
        if x is None:
            raise ValueError("one of input_ids, decoder_input_ids and labels is needed")
        return torch.full((x.shape[0], 1), self.start_token, device=x.device)

    def encode(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Hidden states of the encoder [batch, source, width]; every token sees every token."""
        place = torch.arange(x.shape[1], device=x.device)[None]
        bias = self.encoder_bias(place, place)
        if attention_mask is not None:
            bias = bias.masked_fill(~padding_mask(attention_mask), float("-inf"))
        for layer in self.encoder_layers:
            x = layer(x, mask=bias)
        return self.encoder_norm(x)

    def memorise(self, encoded: Tensor) -> list[KeyValue]:
        """Keys and values [batch, heads, source, head_dim] for the cross-attention of each layer of
        the decoder, from the encoder's hidden states [batch, source, width]."""
        layers = cast("Iterable[TransformerBlock]", self.decoder_layers)
        return [layer.cross.key_value(encoded) for layer in layers if layer.cross]

    def decode(
        self,
        x: Tensor,
        memory: list[KeyValue],
        memory_mask: Tensor | None,
        attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """Hidden states of the newest tokens of the decoder, from their embeddings: both [batch,
        target, width]. `memory_mask` [batch, source] is that of the encoder's tokens."""
        where = places(attention_mask, x, 0) if cache is None else cache.place(attention_mask, x)
        bias = self.decoder_bias(where.positions, where.keys)
        ahead = where.keys[:, None, None, :] > where.positions[:, None, :, None]
        bias = bias.masked_fill(ahead if where.mask is None else ~where.mask, float("-inf"))
        seen = None if memory_mask is None else padding_mask(memory_mask)
        for index, layer in enumerate(self.decoder_layers):
            x = layer(
                x,
                mask=bias,
                cache=None if cache is None else cache.layers[index],
                memory=memory[index],
                memory_mask=seen,
            )
        return self.decoder_norm(x)

    def forward(
        self,
        x: Tensor | None,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Without `x` the encoder is not run: its keys and values are in the cache."""
        if x is not None:
            memory = self.memorise(self.encode(x, attention_mask))
            if cache is not None:
                cache.memory = memory
                if attention_mask is not None:
                    cache.state["memory_mask"] = attention_mask
        elif cache is not None and cache.memory:
            memory = cache.memory
            attention_mask = cache.state.get("memory_mask")
        else:
            raise ValueError("input_ids may be left out only with a cache that has seen them")
        words = self.embed(decoder_input_ids)
        return self.decode(words, memory, attention_mask, decoder_attention_mask, cache)
