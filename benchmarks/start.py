"""Prints what vlmc costs: cold validation, and time and memory of each build.

    python benchmarks/start.py [--runs 10] [--builds 3] [specs ...]

Each figure is of a whole process, started cold, as the operating system accounts for it: wall time,
processor time (user and system, which tells what other work on the machine adds to the wall time),
peak resident memory. Builds go into an empty folder, with an empty
cache. Medians over the runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VLMC = [sys.executable, str(ROOT / "cli.py")]


BUILDS = {
    "the texts of a design": [],
    "the texts of a twin and its weights": ["--mini", "--artifacts", "model"],
    "a twin with ONNX graphs, verified": ["--mini", "--artifacts", "model,onnx"],
}


class Measured(NamedTuple):
    """What one process took."""

    wall: float
    """Seconds."""
    processor: float
    """Seconds."""
    peak: float
    """Resident megabytes."""


def measured(command: list[str], **environment: str) -> Measured:
    """What one process took; ends this one where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    scale = 1 if platform.system() == "Darwin" else 1024
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / 1e6)


def built(spec: Path, options: list[str]) -> Measured:
    """What one build took."""
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", str(Path(folder) / "build")]
        command = [*VLMC, "build", str(spec), *options, *output]
        return measured(command, VLMC_CACHE=str(Path(folder) / "cache"))


def row(spec: Path, runs: list[Measured]) -> str:
    """A line of a table."""
    wall = [run.wall for run in runs]
    figures = (statistics.median(wall), min(wall), max(wall))
    processor = statistics.median(run.processor for run in runs)
    peak = max(run.peak for run in runs)
    return (
        f"{spec.stem:<16}" + "".join(f"{f:>9.2f}" for f in (*figures, processor)) + f"{peak:>9.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", type=Path, default=sorted((ROOT / "specs").glob("*")))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--builds", type=int, default=3)
    arguments = parser.parse_args()

    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    heading = f"{'spec':<16}{'median':>9}{'min':>9}{'max':>9}{'CPU s':>9}{'peak MB':>9}"
    print(f"Cold `vlmc validate`, seconds\n{heading}")
    for spec in arguments.specs:
        command = [*VLMC, "validate", str(spec)]
        print(row(spec, [measured(command) for _ in range(arguments.runs)]), flush=True)
    for what, options in BUILDS.items():
        print(f"\n`{' '.join(('vlmc build', *options))}`: {what}, seconds\n{heading}")
        for spec in arguments.specs:
            runs = [built(spec, options) for _ in range(arguments.builds)]
            print(row(spec, runs), flush=True)


if __name__ == "__main__":
    main()
