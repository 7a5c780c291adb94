"""Fusion in one bidirectional stream."""

from typing import Any

import torch
from torch import Tensor, nn

from vlmc.components.shared.output import ModelOutput
from vlmc.components.shared.places import check_described


class SingleStream(nn.Module):
    """Words and visual tokens in one sequence of a text encoder (Li et al., 2019, section 3.2).

    input_ids [batch, text]; visual_embeds [batch, regions, channels], or pixel_values [images, 3,
    height, width] with as many images in each row of the batch; visual tokens follow the words.
    image_text_alignment [batch, regions, words] names the words of each region, -1 where none.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        adapter: nn.Module,
        language: Any,
        head: Any,
        width: int,
        token_types: int,
        positions: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.language = language
        self.head = head
        self.visual_type_embedding = nn.Embedding(token_types, width)
        self.visual_position_embedding = nn.Embedding(positions, width)

    def encode_images(self, visual_embeds: Tensor) -> Tensor:
        """Visual tokens [rows, tokens, width] of region features or of pixel values."""
        dtype = self.visual_type_embedding.weight.dtype
        return self.adapter(self.encoder(visual_embeds.to(dtype)))

    def align(self, image_text_alignment: Tensor) -> Tensor:
        """The mean position embedding of each region's words: [batch, regions, width]."""
        present = (image_text_alignment >= 0).to(self.visual_position_embedding.weight.dtype)
        words = self.language.position_embedding(image_text_alignment.clamp(min=0))
        total = (words * present[..., None]).sum(2)
        return total / present.sum(2).clamp(min=1)[..., None]

    def place(
        self, visual: Tensor, types: Tensor | None, image_text_alignment: Tensor | None
    ) -> Tensor:
        """Adds positions (0 for all, and those of aligned words) and types to visual tokens."""
        shape, device = visual.shape[:2], visual.device
        positions = self.visual_position_embedding(
            torch.zeros(shape, dtype=torch.long, device=device)
        )
        if image_text_alignment is not None:
            # A batch may be padded to more regions than there are features.
            positions = self.align(image_text_alignment[:, : shape[1]]) + positions
        if types is None:
            types = torch.ones(shape, dtype=torch.long, device=device)
        return visual + positions + self.visual_type_embedding(types)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        sentence_image_labels: Tensor | None = None,
        *,
        image_sizes: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> ModelOutput:
        x = self.language.embed(input_ids, token_type_ids)
        text_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = pixel_values if visual_embeds is None else visual_embeds
        if seen is None:
            hidden = self.language(x, text_mask)
        else:
            check_described(seen.shape[0], image_sizes, image_grid_thw)
            visual = self.encode_images(seen)
            visual = visual.reshape(input_ids.shape[0], -1, visual.shape[-1])
            visual = self.place(visual, visual_token_type_ids, image_text_alignment)
            hidden = self.read(x, text_mask, visual, visual_attention_mask)
        return self.head(hidden, text_mask, self.language.embedding, labels, sentence_image_labels)

    def read(self, x: Tensor, mask: Tensor, visual: Tensor, visual_mask: Tensor | None) -> Tensor:
        """Hidden states [batch, text + visual, width] of words and placed visual tokens, each
        [batch, tokens, width] with its mask [batch, tokens]."""
        if visual_mask is None:
            visual_mask = torch.ones(visual.shape[:2], dtype=mask.dtype, device=mask.device)
        mask = torch.cat((mask, visual_mask.to(mask.dtype)), dim=1)
        return self.language(torch.cat((x, visual), dim=1), mask)
