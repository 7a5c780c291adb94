"""Prints what vlmc costs: cold validation, and time and memory of each build.

    python benchmarks/start.py [--runs 10] [specs ...]

Each figure is of a whole process, started cold, as the operating system accounts for it: wall time
and peak resident memory. Medians over the runs (validation) or one run each (builds).
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VLMC = [sys.executable, str(ROOT / "cli.py")]


def measured(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident megabytes of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    scale = 1 if platform.system() == "Darwin" else 1024
    return seconds, usage.ru_maxrss * scale / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", type=Path, default=sorted((ROOT / "specs").glob("*")))
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("Cold `vlmc validate`, seconds")
    print(f"{'spec':<22}{'median':>9}{'min':>9}{'max':>9}{'peak MB':>9}")
    for spec in arguments.specs:
        runs = [measured([*VLMC, "validate", str(spec)]) for _ in range(arguments.runs)]
        times = [seconds for seconds, _ in runs]
        peak = max(megabytes for _, megabytes in runs)
        figures = (statistics.median(times), min(times), max(times))
        print(f"{spec.stem:<22}" + "".join(f"{f:>9.3f}" for f in figures) + f"{peak:>9.0f}")

    print("\n`vlmc build` without weights")
    print(f"{'spec':<22}{'seconds':>9}{'peak MB':>9}")
    folder = Path(tempfile.mkdtemp())
    try:
        for spec in arguments.specs:
            output = folder / spec.stem
            seconds, peak = measured([*VLMC, "build", str(spec), "--output", str(output)])
            print(f"{spec.stem:<22}{seconds:>9.2f}{peak:>9.0f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
