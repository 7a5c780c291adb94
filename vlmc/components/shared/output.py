"""What a model returns, and the losses of its heads."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from vlmc.components.shared.cache import Cache


@dataclass
class ModelOutput:
    """Logits [batch, tokens, vocabulary] (or [batch, classes]); the loss where labels were given;
    the cache where one was passed in; logits [batch, 2] of whether image and text belong together
    from a head that judges it."""

    logits: Tensor
    loss: Tensor | None = None
    cache: Cache | None = None
    seq_relationship_logits: Tensor | None = None


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each next token; labels [batch, tokens] with -100 where none counts."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token itself; labels [batch, tokens], -100 where none counts."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
