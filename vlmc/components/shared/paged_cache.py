"""A key/value cache in blocks of a pool that many sequences share (Kwon et al., 2023)."""

import torch
from torch import Tensor

from vlmc.components.shared.static_cache import StaticCache


class PagedLayer:
    """Keys and values of one layer: a pool of blocks, each [blocks, kv_heads, block, head_dim].

    `table` [batch, blocks of a row] says in which block of the pool each stretch of a row lies. Its
    entries beyond the end of a row name block 0, which belongs to nobody: padding is written there.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        table: Tensor,
        positions: Tensor | None,
        slots: Tensor | None,
    ) -> None:
        self.keys = keys
        self.values = values
        self.table = table
        self.positions = positions
        self.slots = slots

    def append(self, key_value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Writes the newest tokens; returns the keys and values that they may look at."""
        key, value = key_value
        size = self.keys.shape[2]
        if self.positions is None or self.slots is None:
            slots = torch.arange(key.shape[2], device=key.device)
            blocks, offsets = self.table[:, slots // size], (slots % size)[None]
            self.keys[blocks, :, offsets] = key.transpose(1, 2)
            self.values[blocks, :, offsets] = value.transpose(1, 2)
            return key, value
        rows = torch.arange(key.shape[0], device=key.device)
        positions = self.positions[:, 0]
        blocks, offsets = self.table[rows, positions // size], positions % size
        self.keys[blocks, :, offsets] = key[:, :, 0]
        self.values[blocks, :, offsets] = value[:, :, 0]
        blocks, offsets = self.table[:, self.slots // size], (self.slots % size)[None]
        seen = self.keys[blocks, :, offsets], self.values[blocks, :, offsets]
        return seen[0].transpose(1, 2), seen[1].transpose(1, 2)


class PagedCache(StaticCache):
    """A `StaticCache` whose rows lie in blocks: `pools` is [(keys, values)] for each layer."""

    def __init__(
        self,
        pools: list[tuple[Tensor, Tensor]],
        table: Tensor,
        positions: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> None:
        super().__init__([], positions, slots)
        self.table = table
        self.layers = [PagedLayer(k, v, table, positions, slots) for k, v in pools]
