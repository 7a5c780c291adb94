"""Prints how long the search for a plan takes on one core, how much memory, and its gap to brute
force on random instances.

    python benchmarks/plan_search.py [--instances 1000] [SPEC]

Without a spec the design is one in the shape of Flamingo-80B, made by hand; with one, its graphs
are analysed first (not counted).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit")]

SIZES = ((64, 256, 2.0), (256, 1024, 5.0), (1024, 4096, 10.0))
"""Devices, sequences of a step, seconds that are allowed."""


def timed(count: int, batch: int, allowed: float, spec: str | None) -> None:
    """One search, in this process."""
    from graph_reports import cluster, flamingo_80b

    from vlmc.hardware.device import device
    from vlmc.partition.request import Request
    from vlmc.partition.search import find

    report = analysed(spec) if spec else flamingo_80b()
    tokens = None if spec else 64
    request = Request(mode="train", batch=batch, text=2048, images=5, tokens=tokens)
    wall, start = time.perf_counter(), time.process_time()
    found = find(report, cluster(device("a100-80gb"), count), request)
    seconds = time.process_time() - start
    wall = time.perf_counter() - wall
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    plan = found.plan
    print(
        f"{report.design} on {count:>5} devices: {seconds:5.2f} s of one core ({wall:.2f} s by the "
        f"clock; allowed {allowed:g}), {memory:.2f} GB; {plan.mesh.pipeline} x {plan.mesh.data} x "
        f"{plan.mesh.tensor} {plan.schedule}, {plan.predicted.step_seconds:.3f} s a step, proven "
        f"bound {found.bound_seconds:.3f} s, {found.settings} settings cut"
    )


def analysed(spec: str):
    """The report of a spec's graphs."""
    import vlmc
    from vlmc.analysis.analyse import analyse

    return analyse(vlmc.resolve(vlmc.load_spec(spec)))


def gaps(instances: int) -> None:
    """The search beside brute force."""
    from every_plan import fastest, instance

    from vlmc.partition.request import Infeasible
    from vlmc.partition.search import find

    worst, infeasible, differ = 0.0, 0, 0
    for seed in range(instances):
        report, devices, request, decode = instance(seed)
        expected = fastest(report, devices, request, decode)
        try:
            seconds = find(report, devices, request, decode=decode).bound_seconds
        except Infeasible:
            infeasible += 1
            differ += expected is not None
            continue
        if expected is None:
            differ += 1
        else:
            worst = max(worst, abs(seconds / expected - 1))
    print(
        f"{instances} random instances: largest gap to brute force {worst:.1e}, "
        f"{infeasible} with no plan at all, {differ} where only one of the two found a plan"
    )


def main() -> None:
    """Each search in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", nargs="?")
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        timed(*SIZES[options.one], options.spec)
        return
    for number in range(len(SIZES)):
        command = [sys.executable, __file__, "--one", str(number)]
        subprocess.run([*command, *([options.spec] if options.spec else [])], check=True)
    gaps(options.instances)


if __name__ == "__main__":
    main()
