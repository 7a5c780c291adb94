"""The classification head of a text encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmc.components.shared.output import ModelOutput


class Classify(nn.Module):
    """Logits over classes from one hidden state: [batch, tokens, width] -> [batch, classes].

    `last_word` reads the state before the closing token of the text, as VisualBERT's question
    answering does (Li et al., 2019, section 4.1); `first` reads BERT's pooled first token.
    """

    def __init__(self, *, width: int, classes: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.pooler = nn.Linear(width, width) if pool == "first" else None
        self.classifier = nn.Linear(width, classes)

    def read(self, hidden: Tensor, text_mask: Tensor) -> Tensor:
        """The state [batch, width] that decides; text_mask [batch, text] is 0 at padding."""
        if self.pooler is not None:
            return torch.tanh(self.pooler(hidden[:, 0]))
        last = (text_mask.long().sum(1) - 2).clamp(min=0)
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]

    def forward(
        self,
        hidden: Tensor,
        text_mask: Tensor,
        embedding: nn.Embedding,
        labels: Tensor | None = None,
        sentence_image_labels: Tensor | None = None,
    ) -> ModelOutput:
        """Labels are scores [batch, classes] (their divergence is the loss) or classes [batch]."""
        if sentence_image_labels is not None:
            raise ValueError("sentence_image_labels are given, but this head judges no pairs")
        logits = self.classifier(self.read(hidden, text_mask))
        loss = None
        if labels is not None and labels.is_floating_point():
            loss = F.kl_div(F.log_softmax(logits, dim=-1), labels, reduction="batchmean")
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return ModelOutput(logits, loss)
