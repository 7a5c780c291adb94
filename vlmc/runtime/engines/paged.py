"""Blocks of a key/value cache: taken when a sequence grows, given back when it ends."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmc.diagnostics.faults import UsageError


class Blocks:
    """Which blocks of a pool are free. Block 0 is never given out: padding is written there."""

    def __init__(self, total: int, size: int) -> None:
        self.size = size
        """Tokens of one block."""
        self.total = total
        """Blocks of the pool, block 0 not among them."""
        self.free = list(range(total, 0, -1))

    def take(self, count: int) -> list[int]:
        """`count` blocks. Raises UsageError, and takes none, where fewer are free."""
        if count > len(self.free):
            raise UsageError(
                f"the paged key/value cache has {self.total} blocks of {self.size} tokens: "
                f"{count} are needed and {len(self.free)} are free; end another generation, give "
                "fewer or shorter prompts, or open the engine with more blocks"
            )
        return [self.free.pop() for _ in range(count)]

    def give(self, blocks: list[int]) -> None:
        """Takes blocks back, and empties the list."""
        self.free += reversed(blocks)
        blocks.clear()


class BlockTable:
    """The blocks of one generation, row by row. They go back when it ends: by `close`, or with the
    last reference to `owner`."""

    def __init__(self, blocks: Blocks, rows: int, width: int) -> None:
        self.blocks = blocks
        self.numbers: NDArray[np.int64] = np.zeros((rows, width), np.int64)
        """[rows, blocks of a row]; 0 where a row has none."""
        self.held: list[int] = []

    def reach(self, last: Sequence[int]) -> bool:
        """Makes room up to the position `last` of each row; whether a block was added. Raises
        UsageError, and changes nothing, where a row has no place for more, or too few are free."""
        have = np.count_nonzero(self.numbers, axis=1)
        need = [position // self.blocks.size + 1 for position in last]
        width = self.numbers.shape[1]
        if max(need, default=0) > width:
            raise UsageError(
                f"the paged key/value cache holds {width * self.blocks.size} tokens of a sequence, "
                f"and {max(last) + 1} are needed; a larger token_budget holds more"
            )
        wanted = [
            (row, number) for row, most in enumerate(need) for number in range(have[row], most)
        ]
        taken = self.blocks.take(len(wanted))
        for (row, number), block in zip(wanted, taken, strict=True):
            self.numbers[row, number] = block
        self.held += taken
        return bool(taken)

    def owned_by(self, owner: object) -> None:
        """Gives the blocks back when `owner` is gone."""
        weakref.finalize(owner, self.blocks.give, self.held)

    def close(self) -> None:
        """Gives the blocks back now."""
        self.blocks.give(self.held)
        self.numbers[:] = 0
