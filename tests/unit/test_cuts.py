"""The lightest heaviest stage, against all cuts there are."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise
from math import inf
from random import Random
from typing import Any

import pytest

from vlmc.partition.cuts import Cutter


def heaviest(weights: list[float], ends: tuple[int, ...]) -> float:
    return max(weights[end] - weights[first] for first, end in pairwise((0, *ends)))


@pytest.mark.parametrize("first", range(0, 600, 200))
def test_least_and_front_are_those_of_all_cuts(first: int) -> None:
    several = 0
    for seed in range(first, first + 200):
        random = Random(seed)
        length = random.randint(2, 9)
        stages = random.randint(1, min(4, length))
        one, two, size = (
            list(accumulate((float(random.randint(0, 9)) for _ in range(length)), initial=0.0))
            for _ in range(3)
        )
        room = [random.choice([10.0, 20.0, inf]) for _ in range(stages)]
        allowed = [at for at in range(1, length) if random.random() < 0.8] + [length]
        barrier = random.choice([None, None, random.randint(1, length - 1)])

        def fits(stage: int, start: int, end: int, known: Any = (size, room)) -> bool:
            sums, most = known
            return sums[end] - sums[start] <= most[stage]

        cuts = [
            (*cut, length)
            for cut in combinations(allowed[:-1], stages - 1)
            if (barrier is None or barrier in cut)
            and all(
                fits(stage, start, end)
                for stage, (start, end) in enumerate(pairwise((0, *cut, length)))
            )
        ]
        cutter = Cutter(length=length, stages=stages, allowed=allowed, fits=fits, barrier=barrier)
        found = cutter.least(one)
        assert (found is None) == (not cuts), seed
        if found:
            assert found[0] == min(heaviest(one, ends) for ends in cuts) == heaviest(one, found[1])
            assert found[1] in cuts
        front = list(cutter.front(one, two, inf, inf))
        several += len(front) > 1
        if cuts:
            best = min(heaviest(one, ends) + heaviest(two, ends) for ends in cuts)
            assert min(a + b for a, b, _ in front) == best, seed
        assert all(ends in cuts for _, _, ends in front)
    assert several > 10
