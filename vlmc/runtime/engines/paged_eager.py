"""The model itself as an engine, its key/value caches in blocks of one pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from vlmc.capture.stages import BLOCK
from vlmc.components.shared.cache import Cache
from vlmc.components.shared.paged_cache import PagedCache
from vlmc.runtime.design import Design
from vlmc.runtime.engines.eager_engine import EagerEngine, EagerState
from vlmc.runtime.engines.engine import Ids, Logits, Row
from vlmc.runtime.engines.paged import Blocks, BlockTable


class PagedRows:
    """Where the rows of one generation stand."""

    def __init__(self, table: BlockTable, last: NDArray[np.int64]) -> None:
        self.table = table
        self.last = last
        """The position of the newest token of each row."""


class PagedEagerEngine(EagerEngine):
    """Rows take blocks as they grow and give them back when their state is gone, so that many
    generations of unlike lengths share `blocks` blocks of `BLOCK` tokens."""

    def __init__(self, model: Any, design: Design, *, blocks: int) -> None:
        super().__init__(model, design)
        self.capacity = design.capacity
        self.blocks = Blocks(blocks, BLOCK)
        self.pools: list[tuple[Tensor, Tensor]] = []

    @override
    @torch.inference_mode()
    def prefill(self, rows: Sequence[Row]) -> tuple[EagerState, Logits]:
        """Reads whole prompts. Raises UsageError where there are not enough free blocks."""
        own = [1 if self.design.serving == "encoder_decoder" else len(row.ids) for row in rows]
        table = BlockTable(self.blocks, len(rows), self.design.capacity // BLOCK)
        last = np.array(own, np.int64) - 1
        table.reach([int(one) for one in last])
        try:
            state, logits = super().prefill(rows)
        except BaseException:
            table.close()
            raise
        table.owned_by(state)
        self._move(state.cache, table)
        state.cache = PagedRows(table, last)
        return state, logits

    @override
    @torch.inference_mode()
    def step(self, state: EagerState, tokens: Ids) -> Logits:
        """Appends a token to each row. Raises UsageError where there are not enough free blocks,
        and leaves the state as it was."""
        rows = state.cache
        if isinstance(rows, Cache) or not isinstance(rows, PagedRows):  # while a prompt is read
            return super().step(state, tokens)
        last = rows.last + 1
        rows.table.reach([int(one) for one in last])
        rows.last = last
        positions = torch.tensor(last, device=self.device)[:, None]
        slots = torch.arange(int(last.max()) + 1, device=self.device)
        table = torch.tensor(rows.table.numbers, device=self.device)
        state.cache = PagedCache(self.pools, table, positions, slots)
        try:
            return super().step(state, tokens)
        finally:
            state.cache = rows

    def _move(self, cache: Any, table: BlockTable) -> None:
        """Puts the keys and values of a prompt into blocks."""
        if not self.pools:
            for layer in cache.layers:
                _, heads, _, width = layer.keys.shape
                shape = (self.blocks.total + 1, heads, BLOCK, width)
                self.pools.append((layer.keys.new_zeros(shape), layer.values.new_zeros(shape)))
        paged = PagedCache(self.pools, torch.tensor(table.numbers, device=self.device))
        for own, layer in zip(paged.layers, cache.layers, strict=True):
            own.append((layer.keys, layer.values))
