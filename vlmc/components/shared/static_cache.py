"""A key/value cache in tensors of fixed size, written in place."""

import torch
from torch import Tensor

from vlmc.components.shared.masks import Places


class StaticLayer:
    """Keys and values of one layer, each [batch, kv_heads, capacity, head_dim].

    A token's slot is its position, row by row, so that rows of unlike lengths need no padding on
    the left: what a shorter row's padding left behind is overwritten before it is ever seen.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, positions: Tensor | None, slots: Tensor | None
    ) -> None:
        self.keys = keys
        self.values = values
        self.positions = positions
        self.slots = slots

    def append(self, key_value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Writes the newest tokens; returns the keys and values that they may look at."""
        key, value = key_value
        if self.positions is None or self.slots is None:
            tokens = key.shape[2]
            self.keys[:, :, :tokens] = key
            self.values[:, :, :tokens] = value
            return key, value
        seen = self.slots.shape[0]
        if key.shape[0] == 1:
            # The newest token of a single row stands in the last slot that is read.
            self.keys[:, :, seen - 1 : seen] = key
            self.values[:, :, seen - 1 : seen] = value
        else:
            rows = torch.arange(key.shape[0], device=key.device)
            self.keys[rows, :, self.positions[:, 0]] = key[:, :, 0]
            self.values[rows, :, self.positions[:, 0]] = value[:, :, 0]
        return self.keys[:, :, :seen], self.values[:, :, :seen]


class StaticCache:
    """A cache over tensors that a caller keeps: [(keys, values)] for each layer.

    The whole prompt is written first, from slot 0 on: `positions` and `slots` are None. Then each
    step writes one token of each row at its position, `positions` [batch, 1], and reads the
    `slots` [n], which are 0, 1, ..., n - 1; n - 1 is the largest of the positions.
    """

    def __init__(
        self,
        layers: list[tuple[Tensor, Tensor]],
        positions: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> None:
        self.positions = positions
        self.slots = slots
        self.layers = [StaticLayer(keys, values, positions, slots) for keys, values in layers]

    def place(self, attention_mask: Tensor | None, x: Tensor) -> Places:
        """The places of x [batch, queries, width]. A mask is not read: padding stands last."""
        if self.positions is None or self.slots is None:
            positions = torch.arange(x.shape[1], device=x.device)[None]
            return Places(positions, positions, None, True)
        keys = self.slots[None]
        if x.shape[0] == 1:
            return Places(self.positions, keys, None, False)
        seen = keys[:, None, None, :] <= self.positions[:, None, :, None]
        return Places(self.positions, keys, seen, False)
