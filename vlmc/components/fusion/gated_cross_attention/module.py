"""Fusion by gated cross-attention."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmc.components.shared.attention import Attention, KeyValue
from vlmc.components.shared.cache import Cache
from vlmc.components.shared.mlp import MLP
from vlmc.components.shared.norm import Norm
from vlmc.components.shared.output import ModelOutput, next_token_loss
from vlmc.components.shared.places import check_described


class GatedBlock(nn.Module):
    """Cross-attention and an MLP, each behind a tanh gate that starts shut: [batch, text, width].

    Alayrac et al., 2022 (Flamingo), section 2.2 and appendix A.1.2. `seen` [batch, 1, text, keys]
    is True where a token may look at a visual token; one that sees none gets nothing from the
    cross-attention.
    """

    def __init__(
        self,
        *,
        width: int,
        source_width: int,
        heads: int,
        head_dim: int,
        hidden: int,
        norm: str,
        norm_eps: float,
        activation: str,
        gated: bool,
        qk_norm: str | None,
        gate_width: int,
    ) -> None:
        super().__init__()
        self.attention_norm = Norm(width=width, kind=norm, eps=norm_eps)
        self.attention = Attention(
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            source_width=source_width,
            qkv_bias=False,
            output_bias=False,
            qk_norm=qk_norm,
            qk_norm_eps=norm_eps,
        )
        self.attention_gate = nn.Parameter(torch.zeros(gate_width))
        self.mlp_norm = Norm(width=width, kind=norm, eps=norm_eps)
        self.mlp = MLP(width=width, hidden=hidden, activation=activation, gated=gated, bias=False)
        self.dense_gate = nn.Parameter(torch.zeros(gate_width))

    def forward(self, x: Tensor, memory: KeyValue | None, seen: Tensor | None) -> Tensor:
        if memory is not None and seen is not None:
            sighted = seen.any(dim=-1, keepdim=True)
            # A row without a single key would be NaN: let it see all, then take nothing from it.
            attended = self.attention(self.attention_norm(x), memory, mask=seen | ~sighted)
            attended = attended.masked_fill(~sighted[:, 0], 0.0)
            x = x + torch.tanh(self.attention_gate) * attended
        return x + torch.tanh(self.dense_gate) * self.mlp(self.mlp_norm(x))


class GatedCrossAttention(nn.Module):
    """Gated blocks before every `every`-th block of the language model look at the images.

    input_ids [batch, text] with an image token for each image; pixel_values [batch, images, 3,
    height, width], or [batch, images, frames, 3, height, width] for videos; logits [batch, text,
    vocabulary]. Images of a row that has fewer than `images` stand last and are seen by nobody.
    `image_attention_mask` [batch, text, images] overrides who sees which image; without it a token
    sees the last image before it, or with `all_previous` every image before it (the image token
    itself sees its own). Alayrac et al., 2022 (Flamingo), section 2.3.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        adapter: nn.Module,
        language: Any,
        head: Any,
        width: int,
        visual_width: int,
        visual_projection: bool,
        every: int,
        blocks: int,
        heads: int,
        head_dim: int,
        hidden: int,
        norm: str,
        norm_eps: float,
        activation: str,
        gated: bool,
        qk_norm: str | None,
        gate_width: int,
        all_previous: bool,
        image_token: int,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.language = language
        self.head = head
        self.every = every
        self.all_previous = all_previous
        self.image_token = image_token
        self.visual_projection = None
        if visual_projection:
            self.visual_projection = nn.Linear(visual_width, width, bias=False)
        self.gated_blocks = nn.ModuleList(
            GatedBlock(
                width=width,
                source_width=width if visual_projection else visual_width,
                heads=heads,
                head_dim=head_dim,
                hidden=hidden,
                norm=norm,
                norm_eps=norm_eps,
                activation=activation,
                gated=gated,
                qk_norm=qk_norm,
                gate_width=gate_width,
            )
            for _ in range(blocks)
        )

    def new_cache(self) -> Cache:
        """An empty cache for a generation."""
        return Cache(len(self.language.layers))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [batch, images, tokens, width]."""
        visual = self.adapter(self.encoder(pixel_values.flatten(0, 1)))
        if self.visual_projection is not None:
            visual = self.visual_projection(visual)
        return visual.unflatten(0, pixel_values.shape[:2])

    def memorise(self, visual: Tensor) -> list[KeyValue]:
        """Keys and values [rows, heads, tokens, head_dim] of visual tokens [rows, tokens, width]
        for each gated block."""
        blocks = cast("Iterable[GatedBlock]", self.gated_blocks)
        return [block.attention.key_value(visual) for block in blocks]

    def images_seen(self, input_ids: Tensor, images: int) -> Tensor:
        """Which images each token sees, by the places of the image tokens: [batch, text, images].

        Raises ValueError unless the row with the most image tokens has `images` of them.
        """
        before = (input_ids == self.image_token).cumsum(dim=1)[..., None]
        if int(before.max()) != images:
            raise ValueError(
                f"{int(before.max())} image tokens in the row of input_ids that has the most, but "
                f"{images} images in each row of pixel_values"
            )
        number = torch.arange(1, images + 1, device=input_ids.device)
        return number <= before if self.all_previous else number == before

    def look(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[list[KeyValue], Tensor | None]:
        """Keys and values of the images for each gated block, and the mask [batch, 1, text, keys].

        With new images they are made and put into `cache`; without, they are those of `cache`, and
        new tokens see what the last one before them saw. Raises ValueError for a mask over images
        that there are not.
        """
        if pixel_values is not None:
            if cache is not None and cache.length > 0:
                raise ValueError("all images belong to the first call with a cache")
            visual = self.encode_images(pixel_values)
            memory = self.memorise(visual.flatten(1, 2))
            seen = image_attention_mask
            if seen is None:
                seen = self.images_seen(input_ids, visual.shape[1])
        elif cache is not None and "seen" in cache.state:
            memory, seen = cache.memory, image_attention_mask
            if seen is None:
                seen = cache.state["seen"].expand(-1, input_ids.shape[1], -1)
        elif image_attention_mask is None:
            return [], None
        else:
            raise ValueError("image_attention_mask is given, but no pixel_values")
        if cache is not None:
            cache.memory, cache.state["seen"] = memory, seen[:, -1:]
        tokens = memory[0][0].shape[2] // seen.shape[2]
        return memory, seen.bool().repeat_interleave(tokens, dim=-1)[:, None]

    def read(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        memory: list[KeyValue],
        seen: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """Hidden states of embeddings, both [batch, text, width]: the language model's blocks with
        the gated ones between them. `seen` [batch, 1, text, keys] says who sees what of `memory`.
        """
        x, context = self.language.enter(x, attention_mask, cache)
        for index in range(len(self.language.layers)):
            if index % self.every == 0:
                number = index // self.every
                block = self.gated_blocks[number]
                x = block(x, memory[number] if memory else None, seen)
            layer_cache = None if cache is None else cache.layers[index]
            x = self.language.layer(index, x, context, layer_cache)
        return self.language.norm(x)

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
        image_attention_mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> ModelOutput:
        if pixel_values is not None:
            images = pixel_values.shape[0] * pixel_values.shape[1]
            check_described(images, image_sizes, image_grid_thw)
        memory, seen = self.look(input_ids, pixel_values, image_attention_mask, cache)
        x = self.language.embed(input_ids)
        logits = self.logits(self.read(x, attention_mask, memory, seen, cache))
        loss = None if labels is None else next_token_loss(logits, labels)
        return ModelOutput(logits, loss, cache)
