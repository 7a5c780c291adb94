"""Fusion by visual tokens before the text."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmc.components.shared.cache import Cache
from vlmc.components.shared.output import ModelOutput, next_token_loss, token_loss
from vlmc.components.shared.places import check_described, fill_places


class Prefix(nn.Module):
    """Visual tokens stand before the text: a soft prompt (Li et al., 2023, BLIP-2, section 3.3).

    input_ids [batch, text]; pixel_values [images, 3, height, width] in the order in which the
    images stand in the batch. Where input_ids hold the placeholder, visual tokens take its places
    (several images may stand between words); where they hold none, those of a row's images are put
    in front of its text, and the sequence grows by them: sequence = visual + text. An attention
    mask stays that of input_ids.

    A decoder gives logits [batch, sequence, vocabulary] and reads labels [batch, text], which stand
    at the last `text` positions: visual tokens are never asked for. An encoder-decoder gives logits
    [batch, target, vocabulary] for decoder_input_ids [batch, target], or for labels [batch, target]
    shifted right, or for its start token alone.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        adapter: nn.Module,
        language: Any,
        head: Any,
        image_token: int | None,
        encoder_decoder: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.language = language
        self.head = head
        self.image_token = image_token
        self.encoder_decoder = encoder_decoder

    def new_cache(self) -> Cache:
        """An empty cache for a generation."""
        if self.encoder_decoder:
            return Cache(len(self.language.decoder_layers))
        return Cache(len(self.language.layers))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [images, tokens, width]."""
        return self.adapter(self.encoder(pixel_values))

    def join(
        self, input_ids: Tensor, pixel_values: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [batch, sequence, width], and the mask [batch, visual] of what stands in front
        of input_ids, now or since the cache was new."""
        words = self.language.embed(input_ids)
        if pixel_values is None:
            return words, None if cache is None else cache.state.get("front")
        features = self.encode_images(pixel_values)
        if self.image_token is not None:
            is_place = input_ids == self.image_token
            if bool(is_place.any()):
                return fill_places(words, is_place, features), None
        if cache is not None and cache.length > 0:
            raise ValueError("images in front of the text belong to the first call with a cache")
        batch = input_ids.shape[0]
        if features.shape[0] % batch:
            raise ValueError(f"{features.shape[0]} images for {batch} rows without placeholders")
        visual = features.reshape(batch, -1, features.shape[-1]).to(words.dtype)
        front = input_ids.new_ones(visual.shape[:2])
        if cache is not None:
            cache.state["front"] = front
        return torch.cat((visual, words), dim=1), front

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of hidden states [batch, tokens, width]."""
        if self.encoder_decoder:
            return self.head(hidden, self.language.embedding)
        return self.head(hidden, self.language.embedding, self.language.added_embedding)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> ModelOutput:
        x = None
        if pixel_values is not None:
            check_described(pixel_values.shape[0], image_sizes, image_grid_thw)
        if input_ids is not None:
            x, front = self.join(input_ids, pixel_values, cache)
            if front is not None and attention_mask is not None:
                attention_mask = torch.cat((front.to(attention_mask.dtype), attention_mask), dim=1)
        if self.encoder_decoder:
            if decoder_input_ids is None:
                decoder_input_ids = self.language.begin(labels, x)
            hidden = self.language(
                x, attention_mask, decoder_input_ids, decoder_attention_mask, cache
            )
            logits = self.logits(hidden)
            loss = None if labels is None else token_loss(logits, labels)
            return ModelOutput(logits, loss, cache)
        if x is None or decoder_input_ids is not None or decoder_attention_mask is not None:
            raise ValueError("a decoder needs input_ids and takes no decoder_* inputs")
        logits = self.logits(self.language(x, attention_mask, cache))
        loss = None
        if labels is not None:
            visual = logits.shape[1] - labels.shape[1]
            loss = next_token_loss(logits, F.pad(labels, (visual, 0), value=-100))
        return ModelOutput(logits, loss, cache)
