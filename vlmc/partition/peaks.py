"""The fullest moments of a chain's stretches, over the model's states and all that is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from vlmc.partition.part import Part


class Peaks:
    """Of a chain under one setting: its distinct `parts`, their `order` in it, and sums over it of
    what they save and of their gradients. `loss`: bytes over all that is saved while logits become
    a loss; `tied`: whether a block reads the embedding again."""

    def __init__(
        self,
        parts: Sequence[Part],
        order: Sequence[int],
        saved: Sequence[float],
        made: Sequence[float],
        loss: float | None,
        *,
        tied: bool,
    ) -> None:
        self._parts, self._order, self._saved, self._made = parts, order, saved, made
        self._late = sums(parts, order, lambda part: part.late)
        self._released = sums(parts, order, lambda part: part.released)
        self._regathered = sums(parts, order, lambda part: part.regathered)
        self._ends = (
            sums(parts, order, lambda part: part.ending),
            sums(parts, order, lambda part: part.stepping),
        )
        # The gradient of a tied embedding is there from the start of a backward pass.
        self._early = [0.0] * len(saved) if tied else self._late
        self._ahead = self._received()
        forward = [part.saved + part.forward_peak for part in parts]
        self._forward = [
            level + forward[block] + size
            for level, block, size in zip(saved, order, self._ahead, strict=False)
        ]
        if loss is not None:
            self._forward[-1] = max(self._forward[-1], saved[-1] + loss + self._ahead[-1])
        self._backward = first = self._risen([part.backward_peak for part in parts])
        if any(part.first_peak != part.backward_peak for part in parts):
            first = self._risen([part.first_peak for part in parts])
        self._first = [
            peak - after + gone
            for peak, after, gone in zip(first, made[1:], self._released[1:], strict=True)
        ]

    def ending(self, first: int, end: int) -> float:
        """Bytes of a stage over the model's states when all is computed."""
        return max(row[end] - row[first] for row in self._ends)

    def over(self, held: float, first: int, end: int, *, steady: bool) -> float:
        """Bytes of a stage that holds so many micro-batches. `steady`: a backward pass comes before
        all forward passes are done. Else gradients appear only while what is saved of the first
        micro-batch goes, and with the only one copies of weights too: then it can be below 0."""
        saved, made, gone = self._saved, self._made, self._released
        late = self._late[end] - self._late[first] + self._early[first]
        forward, backward = self._passes(first, end)
        one = saved[end] - saved[first]
        ending = self.ending(first, end) - held * one
        if steady:
            return max(forward, backward, ending)
        return max(
            forward - (made[end] - made[first]),
            max(self._first[first:end]) + made[first] - gone[end] - saved[end] + late,
            backward - one if held > 1 else gone[first] - gone[end] - one,
            ending,
        )

    def at_work(self, first: int, end: int) -> float:
        """Bytes of a stage while it runs a micro-batch, before the step's end."""
        return max(self._passes(first, end))

    def _passes(self, first: int, end: int) -> tuple[float, float]:
        """Bytes of a stage while it runs forward, and backward, over all that is saved."""
        late = self._late[end] - self._late[first] + self._early[first]
        forward = max(
            max(self._forward[first:end]) - self._saved[end],
            self._regathered[end] - self._regathered[first],
        )
        return forward, max(self._backward[first:end]) - self._saved[end] + late

    def _received(self) -> list[float]:
        """What blocks beside the stacks hold of the gather for the block before them."""
        brought = [part.received for part in self._parts]
        if not any(brought):
            return [0.0] * len(self._order)
        found: list[float] = []
        last = 0.0
        for block in self._order:
            last = brought[block] or last
            found.append(0.0 if brought[block] else last)
        return found

    def _risen(self, peaks: Sequence[float]) -> list[float]:
        """What is held of activations and on the way while each block runs backward, less gradients
        that come later or not at all."""
        parts, order = self._parts, self._order
        peaks = [part.saved + peak for part, peak in zip(parts, peaks, strict=True)]
        sent = [part.sending for part in parts]
        if not any(sent):
            return [
                level + peaks[block] - late
                for level, block, late in zip(self._saved, order, self._early, strict=False)
            ]
        leaving = [part.leaving for part in parts]
        after = [*(sent[block] for block in order[1:]), 0.0]
        return [
            level + max(peaks[block] + sending + size, leaving[block]) - late
            for level, block, sending, size, late in zip(
                self._saved, order, after, self._ahead, self._early, strict=False
            )
        ]


def sums(parts: Sequence[Part], order: Sequence[int], of: Callable[[Part], float]) -> list[float]:
    """Before each place of a chain, and of all of it."""
    values = [of(part) for part in parts]
    if not any(values):
        return [0.0] * (len(order) + 1)
    return list(accumulate(map(values.__getitem__, order), initial=0.0))
