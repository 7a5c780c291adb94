"""From an `Arch` to what its blocks cost."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import torch

from vlmc.analysis.blocks import TABLE, Costs, cache, distances, embedding
from vlmc.analysis.polynomial import ZERO, Polynomial
from vlmc.analysis.report import (
    NOTHING,
    Block,
    Climb,
    GraphReport,
    Largest,
    Mode,
    Saved,
    Visit,
)
from vlmc.analysis.run import KEPT, Kept, Runs, Trial
from vlmc.analysis.segments import Segments
from vlmc.analysis.shrink import Shrunk, shrink
from vlmc.analysis.spans import Stretch, Where, highest, level, stretches
from vlmc.analysis.splits import divided_along, is_sum, rows, shape
from vlmc.analysis.unroll import unrolled
from vlmc.ir import Arch, Role

Precision = Literal["fp32", "bf16", "fp16"]
FORMATS: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def analyse(
    arch: Arch,
    *,
    mode: Mode = "train",
    trained: tuple[Role, ...] | None = None,
    precision: Precision = "bf16",
    frames: int = 1,
) -> GraphReport:
    """The blocks of a design and what each costs; nothing of the weights is in memory.

    `trained` are the parts that take gradients, by default those that the spec does not freeze;
    `precision` is that of activations; `frames` those of each image, 1 for stills. Raises
    UsageError where a design that generates nothing is to decode.
    """
    if trained is None:
        trained = tuple(node.role for node in arch.nodes if not node.frozen and node.count)
    shrunk = shrink(arch)
    if mode != "train":
        trained = ()
    trial = Trial(shrunk, mode, trained, FORMATS[precision], frames)
    return _Assembly(arch, shrunk, trial, mode, trained).report()


class _Assembly:
    def __init__(
        self,
        arch: Arch,
        shrunk: Shrunk,
        trial: Trial,
        mode: Mode,
        trained: tuple[Role, ...],
    ) -> None:
        self.arch, self.shrunk, self.trial = arch, shrunk, trial
        self.mode: Mode = mode
        self.trained = trained
        self.segments = Segments(trial.model, shrunk.stacks)
        self.runs: dict[Kept, Runs] = {"none": trial.runs("none")}
        for kept in KEPT[1:]:  # what serves keeps nothing
            self.runs[kept] = trial.runs(kept) if mode == "train" else self.runs["none"]
        self.stretches = {kept: stretches(runs, self.segments) for kept, runs in self.runs.items()}
        self.costs = Costs(self.runs, self.segments, trial)

    def report(self) -> GraphReport:
        chain = self._chain()
        blocks: list[Block] = []
        places: dict[Where, int] = {}
        for where in chain:
            block = self._block(where)
            if block not in blocks:
                blocks.append(block)
            places[where] = blocks.index(block)
        order = tuple(places[where] for where in unrolled(chain, chain, self.shrunk))
        visits, timeline = self._visits(places)
        return GraphReport(
            design=self.arch.name,
            mode=self.mode,
            trained=self.trained,
            number_bytes=self.trial.dtype.itemsize,
            blocks=tuple(
                replace(block, count=order.count(index)) for index, block in enumerate(blocks)
            ),
            order=order,
            loss_peak=self._loss_peak(),
            tokens=self.arch.tokens.per_image,
            inputs=self.trial.inputs(),
            visits=visits,
            timeline=timeline,
        )

    def _chain(self) -> list[Where]:
        """The shallow design's blocks as data meets them: parts in their order, blocks of a stack
        where they run last (gated blocks make keys of images before), others where they first do.
        """
        ranks = {
            "encoder": 0,
            "adapter": 1,
            "fusion": 2,
            "language": 3,
            "gated_blocks": 3,
            "head": 4,
        }
        first: dict[Where, int] = {}
        last: dict[Where, int] = {}
        for index, one in enumerate(self.stretches["none"]):
            if one.forward:
                first.setdefault(one.where, index)
                last[one.where] = index
        everything = {self.segments(path) for path, _ in self.trial.model.named_parameters()}
        chosen = {
            where: (last if where[0].endswith("*") else first).get(where, -1)
            for where in everything | set(first)
        }
        for name, number in sorted(chosen):  # a block that does not run stands after its neighbour
            if chosen[name, number] < 0 and number > 0:
                chosen[name, number] = chosen[name, number - 1]
        part = {where: ranks[where[0].split(".")[0]] for where in chosen}
        edge = {w: w[0].endswith(".end") - w[0].endswith(".begin") for w in chosen}
        return sorted(chosen, key=lambda w: (part[w], edge[w], chosen[w], w[1]))

    def _visits(self, places: dict[Where, int]) -> tuple[tuple[Visit, ...], tuple[int, ...]]:
        skeletons = {
            kept: [(one.where, one.forward) for one in found]
            for kept, found in self.stretches.items()
        }
        assert skeletons["none"] == skeletons["selective"] == skeletons["full"]
        visits: list[Visit] = []
        numbers: list[int] = []
        for index, one in enumerate(self.stretches["none"]):
            levels = {
                kept: level(found[index], self.trial.fit) for kept, found in self.stretches.items()
            }
            visit = Visit(
                block=places[one.where],
                forward=one.forward,
                gradients=one.gradients,
                **levels,
            )
            if visit not in visits:
                visits.append(visit)
            numbers.append(visits.index(visit))
        timeline = unrolled(numbers, [one.where for one in self.stretches["none"]], self.shrunk)
        return tuple(visits), tuple(timeline)

    def _of(self, where: Where, kept: str, *, forward: bool) -> list[Stretch]:
        return [o for o in self.stretches[kept] if (o.where, o.forward) == (where, forward)]

    def _cache(self, where: Where) -> Polynomial:
        return cache(self.trial.model, where, self.arch) * self.trial.dtype.itemsize

    def _saved(self, where: Where, kept: str) -> Any:
        changes = (level(o, self.trial.fit).change for o in self._of(where, kept, forward=True))
        return sum(changes, ZERO)

    def _peak(self, where: Where) -> Largest:
        found = self._of(where, "none", forward=True)
        tops = [(top, 0) for one in found for top in level(one, self.trial.fit).peak.among]
        return Largest(tuple(top for top, _ in highest(tops)))

    def _climb(self, where: Where) -> Climb:
        tops: list[tuple[Polynomial, int]] = []
        made = 0
        for one in self._of(where, "none", forward=False):
            tops += [(top, made + so_far) for top, so_far in level(one, self.trial.fit).tops]
            made += one.gradients
        return Climb(tuple((top, Fraction(now, made or 1)) for top, now in highest(tops)))

    def _loss_peak(self) -> Largest:
        backward = [one for one in self.stretches["none"] if not one.forward]
        return level(backward[0], self.trial.fit).peak if backward else NOTHING

    def _block(self, where: Where) -> Block:
        name = where[0]
        root = name.split(".")[0]
        role: Any = "fusion" if root == "gated_blocks" else root
        parameters = [
            (path, one)
            for path, one in self.trial.model.named_parameters()
            if self.segments(path) == where
        ]
        limits, split, all_reduces = shape(self.trial.model, where, parameters)
        along = tuple(divided_along(path) if split else -1 for path, _ in parameters)
        lent = tuple(n for n, (path, _) in enumerate(parameters) if path.endswith(TABLE))
        sums = [is_sum(self.trial.model, path) for path, _ in parameters]
        split_kept, split_made = self.costs.split_shares(where)
        late, split_late = self.costs.late(where)
        source, looks = self.costs.sources(where)
        again = embedding(self.trial.model, name, self.arch)
        return Block(
            role=role,
            name=name,
            count=0,
            parameters=sum(one.numel() for _, one in parameters),
            trained=any(one.requires_grad for _, one in parameters),
            reached=bool(self._of(where, "none", forward=False)),
            tensor_limits=limits,
            split_parameters=split,
            operators=self.costs.operators(where),
            saved=Saved(
                none=self._saved(where, "none"),
                selective=self._saved(where, "selective"),
                full=self._saved(where, "full"),
                split=split_kept,
                late=late,
                late_split=split_late,
            ),
            input=self.costs.flow(where)[0],
            output=self.costs.flow(where)[1],
            peak_forward=self._peak(where),
            climb=self._climb(where),
            split_made=split_made,
            all_reduces=all_reduces,
            all_reduces_again=self.costs.all_reduces_again(where),
            source=source,
            looks=looks,
            tensors=tuple(one.numel() for _, one in parameters),
            rows=rows(one for _, one in parameters),
            split_along=along,
            seeing=tuple(
                n for n, one in enumerate(along) if one < 0 and not sums[n] and n not in lent
            ),
            lent=lent,
            distances=distances(self.trial.model, name),
            embedding=tuple(one.numel() for one in again),
            embedding_rows=rows(again),
            cache=ZERO if self.mode == "train" else self._cache(where),
        )
