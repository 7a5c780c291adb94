"""The search: best first, with bounds, so that what it finds is proven to be the best."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from math import inf

from vlmc.analysis.report import GraphReport
from vlmc.hardware.cluster import Cluster
from vlmc.ir.training import zero_stages
from vlmc.partition.bounds import Bounds
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.keeping import Keeping
from vlmc.partition.leaf import Leaf, best_cuts, fits
from vlmc.partition.part import parts
from vlmc.partition.plan import ParallelPlan
from vlmc.partition.request import Request, check
from vlmc.partition.setting import Setting
from vlmc.partition.several import Effort
from vlmc.partition.shortage import infeasible
from vlmc.partition.space import bases, schedules, zero_choices
from vlmc.partition.why import why
from vlmc.partition.writing import write
from vlmc.runtime.parallel.plan_rules import puts_off

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
    effort = Effort()
    for across_nodes in (False, True):
        search = _Search(lines, tokens, effort)
        search.run(bases(lines, across_nodes=across_nodes))
        leaves = search.ranked()
        if leaves:
            bound = min(leaves[0].pace.seconds, effort.missed)
            best, *others = [write(leaf, bound) for leaf in leaves]
            return Found(
                plan=best,
                alternatives=tuple(others),
                bound_seconds=bound,
                why=why(leaves, bound),
                settings=search.worked_out,
            )
    unlimited = replace(request, first_token_limit=None, token_limit=None)
    fastest = None if unlimited == request else _fastest(lines, tokens, unlimited)
    raise infeasible(lines, fastest, proven=effort.missed == inf)


def _fastest(lines: Rooflines, tokens: Rooflines | None, request: Request) -> Leaf | None:
    """The fastest plan for another request of the same sizes, on whatever links."""
    search = _Search(lines.asked(request), tokens and tokens.asked(request), Effort())
    for across_nodes in (False, True):
        search.run(bases(search.lines, across_nodes=across_nodes))
    return next(iter(search.ranked()), None)


@dataclass(frozen=True, slots=True)
class _Ways:
    """A setting with a way to keep, and with all that keep less of kinds from `free` on."""

    keeping: Keeping
    way: tuple[int, ...]
    free: int = 0


class _Search:
    """Bases and settings in the order of their bounds."""

    def __init__(self, lines: Rooflines, tokens: Rooflines | None, effort: Effort) -> None:
        self.lines = lines
        self.tokens = tokens
        self.bounds = Bounds(lines, tokens)
        self.best: dict[tuple[int, int, int], Leaf] = {}
        self.worked_out = 0
        self.effort = effort
        self._number = count()
        self._queue: list[tuple[float, int, Setting, _Ways | None]] = []
        self._chains: dict[Setting, Chain] = {}

    def run(self, starts: Iterable[Setting]) -> None:
        """Until nothing that is left can be among the best."""
        room = self.lines.cluster.device.memory_bytes
        for base in starts:
            if not self.bounds.too_many(base) and self.bounds.states(base) <= room:
                bound = self.bounds.base(base, schedules(self.lines, base))
                self._push(bound, base, None)
        while self._queue:
            bound, _, setting, ways = heapq.heappop(self._queue)
            if bound >= self._threshold():
                return
            if bound >= self._best_of(setting):
                continue
            if ways is None:
                self._expand(setting)
            else:
                self._visit(setting, ways, bound)

    def ranked(self) -> list[Leaf]:
        """The fastest and the next, one for each combination of degrees."""
        return sorted(self.best.values(), key=lambda leaf: leaf.pace.seconds)[: NEXT + 1]

    def _push(self, bound: float, setting: Setting, ways: _Ways | None) -> None:
        if bound < inf:
            heapq.heappush(self._queue, (bound, next(self._number), setting, ways))

    def _threshold(self) -> float:
        if len(self.best) <= NEXT:
            return inf
        return sorted(leaf.pace.seconds for leaf in self.best.values())[NEXT]

    def _best_of(self, setting: Setting) -> float:
        leaf = self.best.get(_degrees(setting))
        return min(leaf.pace.seconds if leaf else inf, self._threshold())

    def _expand(self, base: Setting) -> None:
        ways = schedules(self.lines, base)
        for zero in zero_choices(self.lines, base):
            kept = replace(base, zero=zero)
            at_once = Keeping(self.lines, kept)
            tokens = parts(self.tokens, kept) if self.tokens else None
            for schedule, chunks in ways:
                if zero not in zero_stages(schedule, base.pipeline):
                    continue
                setting = replace(kept, schedule=schedule, chunks=chunks)
                late = puts_off(schedule, base.pipeline)
                keeping = Keeping(self.lines, setting) if late else at_once
                costs = keeping.parts(keeping.fastest)
                bound = self.bounds.setting(setting, costs, tokens)
                self._push(bound, setting, _Ways(keeping, keeping.fastest))

    def _visit(self, setting: Setting, ways: _Ways, bound: float) -> None:
        """Works out a way unless it is ruled out, then those that follow it unless all are."""
        keeping, way, under = ways.keeping, ways.way, self._best_of(setting)
        if not self.bounds.possible(setting, keeping.least(way, ways.free), under):
            return
        if self.bounds.possible(setting, keeping.parts(way), under):
            bound = max(bound, self._work_out(replace(setting, keeps=keeping.named(way))))
            if bound == inf:
                return
        for following, free in keeping.following(way, ways.free):
            least = max(bound, self.bounds.setting(setting, keeping.parts(following)))
            self._push(least, setting, _Ways(keeping, following, free))

    def _work_out(self, setting: Setting) -> float:
        """Seconds that no cuts of ways that keep less beat; infinite where none of them can be
        better than what is known now."""
        self.worked_out += 1
        chain, under = self._chain(setting), self._best_of(setting)
        unlimited = best_cuts(chain, under, unlimited=True)
        if unlimited is None:
            return inf
        if fits(unlimited):
            self.best[_degrees(setting)] = unlimited
            return inf
        leaf = best_cuts(chain, under, effort=self.effort)
        if leaf:
            self.best[_degrees(setting)] = leaf
        return unlimited.pace.seconds

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
