"""The key/value cache of autoregressive generation."""

import torch
from torch import Tensor


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

    @property
    def length(self) -> int:
        """Tokens of the sequence that the cache holds."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]
