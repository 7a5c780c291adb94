"""The search: best first, with bounds, so that what it finds is proven to be the best."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from math import inf

from vlmc.analysis.report import GraphReport
from vlmc.hardware.cluster import Cluster
from vlmc.partition.bounds import Bounds
from vlmc.partition.chain import Chain, Part, parts
from vlmc.partition.costs import Rooflines
from vlmc.partition.leaf import Leaf, best_cuts
from vlmc.partition.plan import ParallelPlan
from vlmc.partition.request import Request, check
from vlmc.partition.setting import Setting
from vlmc.partition.shortage import infeasible
from vlmc.partition.space import bases, completions, schedules
from vlmc.partition.why import why
from vlmc.partition.writing import write

NEXT = 3
"""Alternatives that a plan is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The best plan; the best plans of the next degrees, fastest first; why it was chosen."""

    plan: ParallelPlan
    alternatives: tuple[ParallelPlan, ...]
    bound_seconds: float
    """No plan of the space is faster, by proof."""
    why: tuple[str, ...]
    settings: int
    """Settings whose cuts were worked out."""

    @property
    def proven(self) -> bool:
        """Whether the plan is the best of the space."""
        return self.bound_seconds >= (
            self.plan.predicted.step_seconds if self.plan.predicted else 0
        )


def find(
    report: GraphReport,
    cluster: Cluster,
    request: Request,
    *,
    decode: GraphReport | None = None,
) -> Found:
    """The fastest plan. When serving, `report` is of the prompts and `decode` of one more token.

    Raises UsageError for a request or a cluster that cannot be meant, Infeasible where nothing
    fits. A tensor group spans nodes only where nothing else fits.
    """
    check(request, cluster)
    prompt = max(1, request.text - request.generate) if request.mode == "serve" else None
    lines = Rooflines(report, cluster, request, prompt)
    tokens = Rooflines(decode, cluster, request) if decode else None
    for across_nodes in (False, True):
        search = _Search(lines, tokens)
        search.run(bases(lines, across_nodes=across_nodes))
        leaves = search.ranked()
        if leaves:
            bound = leaves[0].pace.seconds
            best, *others = [write(leaf, bound) for leaf in leaves]
            return Found(
                plan=best,
                alternatives=tuple(others),
                bound_seconds=bound,
                why=why(leaves, bound),
                settings=search.worked_out,
            )
    raise infeasible(lines, tokens)


class _Search:
    """Bases and settings in the order of their bounds."""

    def __init__(self, lines: Rooflines, tokens: Rooflines | None) -> None:
        self.lines = lines
        self.tokens = tokens
        self.bounds = Bounds(lines, tokens)
        self.best: dict[tuple[int, int, int], Leaf] = {}
        self.worked_out = 0
        self._number = count()
        self._queue: list[tuple[float, int, Setting, bool]] = []
        self._parts: dict[Setting, tuple[Part, ...]] = {}

    def run(self, starts: Iterable[Setting]) -> None:
        """Until nothing that is left can be among the best."""
        room = self.lines.cluster.device.memory_bytes
        for base in starts:
            if self.bounds.states(base) <= room:
                bound = self.bounds.base(base, schedules(self.lines, base))
                self._push(bound, base, complete=False)
        while self._queue:
            bound, _, setting, complete = heapq.heappop(self._queue)
            if bound >= self._threshold():
                return
            if bound >= self._best_of(setting):
                continue
            if complete:
                self._work_out(setting)
            else:
                self._expand(setting)

    def ranked(self) -> list[Leaf]:
        """The fastest and the next, one for each combination of degrees."""
        return sorted(self.best.values(), key=lambda leaf: leaf.pace.seconds)[: NEXT + 1]

    def _push(self, bound: float, setting: Setting, *, complete: bool) -> None:
        if bound < inf:
            heapq.heappush(self._queue, (bound, next(self._number), setting, complete))

    def _threshold(self) -> float:
        if len(self.best) <= NEXT:
            return inf
        return sorted(leaf.pace.seconds for leaf in self.best.values())[NEXT]

    def _best_of(self, setting: Setting) -> float:
        leaf = self.best.get(_degrees(setting))
        return min(leaf.pace.seconds if leaf else inf, self._threshold())

    def _expand(self, base: Setting) -> None:
        ways = schedules(self.lines, base)
        for zero, encoder, language in completions(self.lines, base):
            kept = replace(base, zero=zero, encoder_keeps=encoder, language_keeps=language)
            costs = parts(self.lines, kept)
            tokens = parts(self.tokens, kept) if self.tokens else None
            for schedule, chunks in ways:
                setting = replace(kept, schedule=schedule, chunks=chunks)
                self._push(self.bounds.setting(setting, costs, tokens), setting, complete=True)

    def _work_out(self, setting: Setting) -> None:
        self.worked_out += 1
        chain = Chain(self.lines, setting, self.tokens)
        leaf = best_cuts(chain, self._best_of(setting))
        if leaf:
            self.best[_degrees(setting)] = leaf


def _degrees(setting: Setting) -> tuple[int, int, int]:
    return setting.pipeline, setting.data, setting.tensor
