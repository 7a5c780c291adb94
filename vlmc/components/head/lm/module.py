"""The language-modelling head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LMHead(nn.Module):
    """Logits over the vocabulary: hidden [batch, tokens, width] -> [batch, tokens, vocabulary].

    Tied, it has no weights and reads the embedding; added words have a projection of their own.
    T5 v1.0 scales the hidden states before the tied embedding (Raffel et al., 2020).
    """

    def __init__(
        self,
        *,
        width: int,
        vocabulary: int,
        added_vocabulary: int,
        tied: bool,
        scale: float | None,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.projection = None if tied else nn.Linear(width, vocabulary, bias=False)
        self.added_projection = None
        if added_vocabulary and not tied:
            self.added_projection = nn.Linear(width, added_vocabulary, bias=False)

    def forward(
        self, hidden: Tensor, embedding: nn.Embedding, added_embedding: nn.Embedding | None = None
    ) -> Tensor:
        if self.scale is not None:
            hidden = hidden * self.scale
        if self.projection is None:
            logits = F.linear(hidden, embedding.weight)
            if added_embedding is not None:
                logits = torch.cat((logits, F.linear(hidden, added_embedding.weight)), dim=-1)
            return logits
        logits = self.projection(hidden)
        if self.added_projection is not None:
            logits = torch.cat((logits, self.added_projection(hidden)), dim=-1)
        return logits
