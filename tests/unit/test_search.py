"""The search finds the best plan, proves it, and says why."""

from __future__ import annotations

import pytest
from every_plan import fastest, instance

from vlmc.partition.request import Infeasible
from vlmc.partition.search import find

INSTANCES = 120


@pytest.mark.parametrize("first", range(0, INSTANCES, 20))
def test_the_gap_to_brute_force_is_zero(first: int) -> None:
    fitted = 0
    for seed in range(first, first + 20):
        report, devices, request, decode = instance(seed)
        expected = fastest(report, devices, request, decode)
        try:
            found = find(report, devices, request, decode=decode)
        except Infeasible:
            assert expected is None, seed
            continue
        assert found.plan.predicted is not None
        assert expected == pytest.approx(found.plan.predicted.step_seconds, rel=1e-9), seed
        assert found.proven
        fitted += 1
    assert fitted >= 5
