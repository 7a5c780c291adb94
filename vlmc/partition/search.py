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
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.leaf import Leaf, best_cuts
from vlmc.partition.part import Part, parts
from vlmc.partition.plan import ParallelPlan
from vlmc.partition.request import Request, check
from vlmc.partition.setting import Setting
from vlmc.partition.shortage import infeasible
from vlmc.partition.space import bases, completions, schedules
from vlmc.partition.why import why
from vlmc.partition.writing import write
from vlmc.runtime.parallel.plan_rules import zero_stages

NEXT = 3
"""Alternatives that a plan is compared with."""
KEPT = 2000
"""Sums of settings that are kept: about 20 MB."""


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
    if decode and len(decode.order) != len(report.order):
        raise ValueError("the two reports are of unlike chains of blocks")
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
    unlimited = replace(request, first_token_limit=None, token_limit=None)
    raise infeasible(lines, None if unlimited == request else _fastest(lines, tokens, unlimited))


def _fastest(lines: Rooflines, tokens: Rooflines | None, request: Request) -> Leaf | None:
    """The fastest plan for another request of the same sizes, on whatever links."""
    search = _Search(lines.asked(request), tokens and tokens.asked(request))
    for across_nodes in (False, True):
        search.run(bases(search.lines, across_nodes=across_nodes))
    return next(iter(search.ranked()), None)


class _Search:
    """Bases and settings in the order of their bounds."""

    def __init__(self, lines: Rooflines, tokens: Rooflines | None) -> None:
        self.lines = lines
        self.tokens = tokens
        self.bounds = Bounds(lines, tokens)
        self.best: dict[tuple[int, int, int], Leaf] = {}
        self.worked_out = 0
        self._number = count()
        self._queue: list[tuple[float, int, Setting, tuple[Part, ...] | None]] = []
        self._chains: dict[Setting, Chain] = {}

    def run(self, starts: Iterable[Setting]) -> None:
        """Until nothing that is left can be among the best."""
        room = self.lines.cluster.device.memory_bytes
        for base in starts:
            if self.bounds.states(base) <= room:
                bound = self.bounds.base(base, schedules(self.lines, base))
                self._push(bound, base, None)
        while self._queue:
            bound, _, setting, costs = heapq.heappop(self._queue)
            if bound >= self._threshold():
                return
            if bound >= self._best_of(setting):
                continue
            if costs is None:
                self._expand(setting)
            elif self._possible(setting, costs):
                self._work_out(setting)

    def ranked(self) -> list[Leaf]:
        """The fastest and the next, one for each combination of degrees."""
        return sorted(self.best.values(), key=lambda leaf: leaf.pace.seconds)[: NEXT + 1]

    def _push(self, bound: float, setting: Setting, costs: tuple[Part, ...] | None) -> None:
        if bound < inf:
            heapq.heappush(self._queue, (bound, next(self._number), setting, costs))

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
            if not self.bounds.fits(kept, costs):
                continue
            tokens = parts(self.tokens, kept) if self.tokens else None
            for schedule, chunks in ways:
                if zero not in zero_stages(schedule, base.pipeline):
                    continue
                setting = replace(kept, schedule=schedule, chunks=chunks)
                self._push(self.bounds.setting(setting, costs, tokens), setting, costs)

    def _possible(self, setting: Setting, costs: tuple[Part, ...]) -> bool:
        if self.lines.request.mode == "serve":
            return True
        return self.bounds.possible(setting, costs, self._best_of(setting))

    def _work_out(self, setting: Setting) -> None:
        self.worked_out += 1
        chain = self._chain(setting)
        leaf = best_cuts(chain, self._best_of(setting))
        if leaf:
            self.best[_degrees(setting)] = leaf

    def _chain(self, setting: Setting) -> Chain:
        """Schedules share their sums; those of the latest settings are kept."""
        key = replace(setting, schedule="gpipe", chunks=1)
        if key not in self._chains:
            if len(self._chains) >= KEPT:
                self._chains.clear()
            self._chains[key] = Chain(self.lines, key, self.tokens)
        return self._chains[key].scheduled(setting)


def _degrees(setting: Setting) -> tuple[int, int, int]:
    return setting.pipeline, setting.data, setting.tensor
