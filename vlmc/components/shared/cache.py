"""The key/value cache of autoregressive generation."""

import torch
from torch import Tensor

from vlmc.components.shared.masks import Places, places


class LayerCache:
    """Keys and values of one layer so far, each [batch, kv_heads, tokens, head_dim]."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, key_value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Adds the newest tokens; returns the keys and values of all tokens."""
        key, value = key_value
        if self.keys is not None and self.values is not None:
            key = torch.cat((self.keys, key), dim=2)
            value = torch.cat((self.values, value), dim=2)
        self.keys, self.values = key, value
        return key, value


class Cache:
    """What a model remembers between two steps of a generation.

    `memory` holds what is computed once for a prompt and read at every step: keys and values of
    images for cross-attention, or those of an encoder's output.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.state: dict[str, Tensor] = {}

    def place(self, attention_mask: Tensor | None, x: Tensor) -> Places:
        """The places of x [batch, queries, width], the newest tokens.

        `attention_mask` [batch, tokens so far] holds from now on: left out, it is the one before
        with the new tokens added, or none where none was ever given.
        """
        if attention_mask is None and "attention_mask" in self.state:
            before = self.state["attention_mask"]
            attention_mask = torch.cat((before, before.new_ones(x.shape[:2])), dim=1)
        if attention_mask is not None:
            self.state["attention_mask"] = attention_mask
        return places(attention_mask, x, self.length)

    @property
    def length(self) -> int:
        """Tokens of the sequence that the cache holds."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]
