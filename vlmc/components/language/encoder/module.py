"""A bidirectional text encoder."""

import torch
from torch import Tensor, nn

from vlmc.components.shared.block import TransformerBlock
from vlmc.components.shared.masks import padding_mask
from vlmc.components.shared.norm import Norm


class TextEncoder(nn.Module):
    """Bidirectional transformer with its norms after the sums: embeddings [batch, tokens, width] ->
    hidden states, same shape. BERT (Devlin et al., 2019).
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        vocabulary: int,
        context: int,
        token_types: int,
        norm_eps: float,
        activation: str,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(context, width)
        self.token_type_embedding = nn.Embedding(token_types, width)
        self.embedding_norm = Norm(width=width, kind="layer", eps=norm_eps)
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
            )
            for _ in range(layers)
        )

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Words with their types and positions [batch, tokens, width], before the first norm."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        words = self.embedding(input_ids) + self.token_type_embedding(token_type_ids)
        return words + self.position_embedding(positions)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        mask = padding_mask(attention_mask)
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x
