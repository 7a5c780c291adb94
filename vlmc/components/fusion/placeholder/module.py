"""Fusion by placeholder tokens."""

from typing import Any

from torch import Tensor, nn

from vlmc.components.shared.cache import Cache
from vlmc.components.shared.output import ModelOutput, next_token_loss
from vlmc.components.shared.places import check_described, fill_places


class Placeholder(nn.Module):
    """Visual tokens take the places of placeholder tokens in the text (Liu et al., 2023).

    input_ids [batch, text], pixel_values [images, 3, height, width] in the order in which the
    images stand in the batch; logits [batch, text, vocabulary].
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        adapter: nn.Module,
        language: Any,
        head: Any,
        image_token: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.language = language
        self.head = head
        self.image_token = image_token

    def new_cache(self) -> Cache:
        """An empty cache for a generation."""
        return Cache(len(self.language.layers))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [images, tokens, width]."""
        return self.adapter(self.encoder(pixel_values))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of hidden states [batch, tokens, width]."""
        return self.head(hidden, self.language.embedding, self.language.added_embedding)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        *,
        image_sizes: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> ModelOutput:
        x = self.language.embed(input_ids)
        if pixel_values is not None:
            check_described(pixel_values.shape[0], image_sizes, image_grid_thw)
            x = fill_places(x, input_ids == self.image_token, self.encode_images(pixel_values))
        logits = self.logits(self.language(x, attention_mask, cache))
        loss = None if labels is None else next_token_loss(logits, labels)
        return ModelOutput(logits, loss, cache)
