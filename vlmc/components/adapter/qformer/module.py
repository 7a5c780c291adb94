"""The Q-Former of BLIP-2."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from vlmc.components.shared.block import TransformerBlock
from vlmc.components.shared.norm import Norm


class QFormer(nn.Module):
    """Learned queries read an image: [images, tokens, source_width] -> [images, queries, width].

    A BERT encoder over the queries alone, with cross-attention into the image in every
    `cross_attention_every`-th layer from the first on, and a projection to the language model's
    width (Li et al., 2023, BLIP-2, section 3.1). It computes in the dtype of its own weights.
    """

    def __init__(
        self,
        *,
        source_width: int,
        width: int,
        queries: int,
        layers: int,
        heads: int,
        hidden: int,
        activation: str,
        norm_eps: float,
        cross_attention_every: int,
        output_width: int,
    ) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(queries, width))
        self.norm = Norm(width=width, kind="layer", eps=norm_eps)
        self.layers = nn.ModuleList(
            TransformerBlock(
                width=width,
                heads=heads,
                kv_heads=heads,
                head_dim=width // heads,
                hidden=hidden,
                norm="layer",
                norm_eps=norm_eps,
                pre_norm=False,
                activation=activation,
                gated=False,
                qkv_bias=True,
                output_bias=True,
                mlp_bias=True,
                cross_width=source_width if index % cross_attention_every == 0 else None,
            )
            for index in range(layers)
        )
        self.projection = nn.Linear(width, output_width)

    def forward(self, features: Tensor) -> Tensor:
        features = features.to(self.queries.dtype)
        x = self.norm(self.queries).expand(features.shape[0], -1, -1)
        for layer in cast("Iterable[TransformerBlock]", self.layers):
            memory = None if layer.cross is None else layer.cross.key_value(features)
            x = layer(x, memory=memory)
        return self.projection(x)
