"""What each stage computes, as a module over the model of a design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.capture.layout import Layout
from vlmc.components.shared.cache import Cache
from vlmc.components.shared.paged_cache import PagedCache
from vlmc.components.shared.static_cache import StaticCache
from vlmc.ir import Arch

Pairs = list[tuple[Tensor, Tensor]]


class Vision(nn.Module):
    """Encoder and adapter, and whatever follows from an image alone."""

    def __init__(self, model: Any, arch: Arch) -> None:
        super().__init__()
        self.model = model
        self.serving = arch.serving

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.serving == "cross_attention":
            visual = self.model.encode_images(pixels[:, None]).flatten(1, 2)
            return tuple(one for pair in self.model.memorise(visual) for one in pair)
        visual = self.model.encode_images(pixels)
        if self.serving == "single_pass":
            visual = self.model.place(visual, None, None)
        return (visual,)


class Embed(nn.Module):
    """Words as the language model reads them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model.language.embed(input_ids),)


class Encoder(nn.Module):
    """What an encoder-decoder's decoder reads of the encoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        language = self.model.language
        memory = language.memorise(language.encode(inputs_embeds, attention_mask))
        return tuple(one for pair in memory for one in pair)


class Reader(nn.Module):
    """What prefill and decoding share: the language model, and what it reads from outside."""

    def __init__(self, model: Any, arch: Arch, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.serving = arch.serving
        self.tokens = layout.tokens
        self.outside = len(layout.outside)

    def read(self, x: Tensor, mask: Tensor | None, rest: Sequence[Tensor], cache: Any) -> Tensor:
        """Hidden states of embeddings [batch, text, width]; `rest` begins with what is outside."""
        language = self.model.language
        if self.serving == "sequence":
            return language(x, mask, cache)
        memory = _paired(rest[: self.outside - 1])
        extra = rest[self.outside - 1]
        if self.serving == "encoder_decoder":
            return language.decode(x, memory, extra, mask, cache)
        seen = extra.repeat_interleave(self.tokens, dim=-1)[:, None]
        return self.model.read(x, mask, memory, seen, cache)


class Growing(Reader):
    """Takes a cache and gives it back longer."""

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        past = _paired(rest[self.outside :])
        cache = Cache(len(past))
        for layer, (keys, values) in zip(cache.layers, past, strict=True):
            layer.keys, layer.values = keys, values
        hidden = self.read(inputs_embeds, attention_mask, rest, cache)
        # The newest token of a row is the last that is not padding.
        queries = inputs_embeds.shape[1]
        place = torch.arange(1, queries + 1, device=hidden.device)
        real = attention_mask[:, past[0][0].shape[2] :] * place
        logits = self.model.logits(_picked(hidden, real.argmax(dim=1)))
        present = [one for layer in cache.layers for one in (layer.keys, layer.values)]
        return (logits, *(one for one in present if one is not None))


class Prefill(Reader):
    """Reads prompts into caches of fixed size."""

    def cache(self, rest: Sequence[Tensor]) -> StaticCache:
        return StaticCache(_paired(rest))

    def forward(self, inputs_embeds: Tensor, last: Tensor, *rest: Tensor) -> tuple[Tensor]:
        cache = self.cache(rest[self.outside :])
        hidden = self.read(inputs_embeds, None, rest, cache)
        return (self.model.logits(_picked(hidden, last)),)


class PagedPrefill(Prefill):
    """Reads prompts into blocks of a pool."""

    def cache(self, rest: Sequence[Tensor]) -> StaticCache:
        return PagedCache(_paired(rest[1:]), rest[0])


class Step(Reader):
    """Appends a token to each row in caches of fixed size."""

    def cache(self, rest: Sequence[Tensor], positions: Tensor, slots: Tensor) -> StaticCache:
        return StaticCache(_paired(rest), positions, slots)

    def forward(
        self, input_ids: Tensor, positions: Tensor, slots: Tensor, *rest: Tensor
    ) -> tuple[Tensor]:
        cache = self.cache(rest[self.outside :], positions, slots)
        hidden = self.read(self.model.language.embed(input_ids), None, rest, cache)
        return (self.model.logits(hidden),)


class PagedStep(Step):
    """Appends a token to each row in blocks of a pool."""

    def cache(self, rest: Sequence[Tensor], positions: Tensor, slots: Tensor) -> StaticCache:
        return PagedCache(_paired(rest[1:]), rest[0], positions, slots)


class WrittenStep(nn.Module):
    """A step that gives no tensor: its logits go into one of its caller's, the last input. It gives
    None, since torch writes no program to a file that gives nothing at all."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.model = step.model  # so that parameters have the names that they have elsewhere
        self.step = step.forward

    def forward(
        self, input_ids: Tensor, positions: Tensor, slots: Tensor, *rest: Tensor
    ) -> tuple[None]:
        (logits,) = self.step(input_ids, positions, slots, *rest[:-1])
        rest[-1].copy_(logits)
        return (None,)


class SinglePass(nn.Module):
    """A design that answers in one pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, visual: Tensor, visual_mask: Tensor
    ) -> tuple[Tensor, ...]:
        words = self.model.language.embed(input_ids)
        hidden = self.model.read(words, attention_mask, visual, visual_mask)
        output = self.model.head(hidden, attention_mask, self.model.language.embedding, None, None)
        extra = output.seq_relationship_logits
        return (output.logits,) if extra is None else (output.logits, extra)


def _picked(hidden: Tensor, index: Tensor) -> Tensor:
    """One token of each row: [batch, tokens, width] at [batch] -> [batch, 1, width]."""
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[-1]))


def _paired(flat: Sequence[Tensor]) -> Pairs:
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]
