"""The pre-training head of a text encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmc.components.shared.activation import Activation
from vlmc.components.shared.norm import Norm
from vlmc.components.shared.output import ModelOutput, token_loss


class MaskedLM(nn.Module):
    """Logits of masked words, [batch, tokens, width] -> [batch, tokens, vocabulary], and with
    `pairs` of whether image and text belong together, [batch, 2].

    Devlin et al., 2019, section 3.1; with images Li et al., 2019, section 3.3. Tied, the projection
    is the embedding, with a bias of its own.
    """

    def __init__(
        self,
        *,
        width: int,
        vocabulary: int,
        tied: bool,
        activation: str,
        norm_eps: float,
        pairs: bool,
    ) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.activation = Activation(kind=activation)
        self.norm = Norm(width=width, kind="layer", eps=norm_eps)
        self.projection = None if tied else nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.pooler = nn.Linear(width, width) if pairs else None
        self.pair = nn.Linear(width, 2) if pairs else None

    def judge(self, hidden: Tensor) -> Tensor | None:
        """Logits [batch, 2] of whether image and text belong together."""
        if self.pooler is None or self.pair is None:
            return None
        return self.pair(torch.tanh(self.pooler(hidden[:, 0])))

    def forward(
        self,
        hidden: Tensor,
        text_mask: Tensor,
        embedding: nn.Embedding,
        labels: Tensor | None = None,
        sentence_image_labels: Tensor | None = None,
    ) -> ModelOutput:
        """Labels [batch, tokens] count visual tokens too, -100 where none counts;
        sentence_image_labels [batch] add their cross-entropy to the loss."""
        words = self.norm(self.activation(self.transform(hidden)))
        weight = embedding.weight if self.projection is None else self.projection.weight
        logits = F.linear(words, weight, self.bias)
        relationship = self.judge(hidden)
        if sentence_image_labels is not None and (labels is None or relationship is None):
            raise ValueError("sentence_image_labels need labels, and a head that judges pairs")
        loss = None
        if labels is not None:
            if labels.shape != logits.shape[:2]:
                raise ValueError(
                    f"labels have the shape {list(labels.shape)}, expected "
                    f"{list(logits.shape[:2])}: words and visual tokens"
                )
            loss = token_loss(logits, labels)
            if sentence_image_labels is not None and relationship is not None:
                loss = loss + F.cross_entropy(relationship.float(), sentence_image_labels)
        return ModelOutput(logits, loss, seq_relationship_logits=relationship)
