"""Copies of an embedding on several stages: what they take, and the cuts that avoid it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from math import inf
from random import Random

import pytest
from graph_reports import cluster, random_report, small_device

from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.leaf import best_cuts
from vlmc.partition.pace import pace
from vlmc.partition.request import Request
from vlmc.partition.setting import Setting

SETTING = Setting(
    pipeline=2, chunks=2, schedule="interleaved", micro_batch=1, micro_batches=4, data=2, zero=1
)


def chains() -> Iterator[Chain]:
    """Random ones whose stages share a trained embedding."""
    random = Random(5)
    asked = Request(mode="train", batch=8, text=8)
    while True:
        lines = Rooflines(random_report(random), cluster(small_device(1000.0), 4), asked)
        chain = Chain(lines, SETTING)
        if chain.shared is not None and chain.length > SETTING.stages:
            yield chain


def every_cut(chain: Chain) -> list[tuple[int, ...]]:
    inner = combinations(range(1, chain.length), SETTING.stages - 1)
    return [(*cuts, chain.length) for cuts in inner]


def test_copies_on_one_device_take_no_sum() -> None:
    """But each stage has weights of its own to exchange with its replicas."""
    counts = {1: 0, 2: 0}
    for _, chain in zip(range(5), chains(), strict=False):
        shared = chain.shared
        assert shared is not None
        assert shared.seconds > 0
        assert shared.replicas > 0
        for ends in every_cut(chain):
            if shared.apart(ends):
                with_copies = pace(chain, ends).seconds
                chain.shared = None
                alone = pace(chain, ends).seconds
                chain.shared = shared
                groups = len(shared.groups(ends, SETTING.pipeline))
                more = shared.replicas + shared.seconds * (groups > 1)
                assert with_copies - alone == pytest.approx(more)
                counts[groups] += 1
    assert min(counts.values()) > 0


def test_the_best_cuts_are_found_among_copies() -> None:
    won = 0
    for _, chain in zip(range(30), chains(), strict=False):
        assert chain.shared is not None
        leaf = best_cuts(chain, inf)
        assert leaf is not None
        assert leaf.pace.seconds == min(pace(chain, ends).seconds for ends in every_cut(chain))
        groups = chain.shared.groups(leaf.ends, SETTING.pipeline)
        won += chain.shared.apart(leaf.ends) and len(groups) == 1
    assert won  # what the search of such cuts alone finds
