"""aoti/: the graphs of a design, compiled ahead of time; their weights stay outside.

Each graph is compiled in a process of its own kind, two at a time: the compiler of torch is large,
keeps what it has seen, and works on one core.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from vlmc.capture.graph import Graph
from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.artifact import Progress
from vlmc.emit.faults import NotHere
from vlmc.emit.torch_graphs.cpu import level
from vlmc.emit.torch_graphs.onednn import onednn_is_faster
from vlmc.emit.torch_graphs.programs import Tell, describe, optimised, save_program
from vlmc.ir import Arch
from vlmc.passes.effect import Effect

WORKERS = 2
"""Graphs that are compiled at once: each takes about a gigabyte of memory."""


def write_aoti(
    arch: Arch,
    weights: Path,
    folder: Path,
    *,
    progress: Progress,
    device: str = "cpu",
    tell: Tell = None,
) -> None:
    """Fills `folder` with a compiled package for each graph of a design; `weights` is the folder of
    the build's safetensors files.

    `device` is cpu or cuda. Raises NotHere where this machine lacks the device or a compiler,
    UsageError where the weights are in a number format that no graph computes in, EnvironmentFault
    where a compilation fails.
    """
    check_tools(device)
    graphs, dtype = optimised(arch, weights, progress, tell)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for graph in graphs:
            save_program(graph, Path(scratch) / f"{graph.name}.pt2", dtype)
        features = _compile(graphs, Path(scratch), folder, device, progress, tell)
    system = {"os": platform.system(), "machine": platform.machine(), "cpu_features": features}
    extra: dict[str, Any] = {"device": device, "system": system}
    if device == "cuda":
        extra["gpu"] = list(torch.cuda.get_device_capability())
    describe(arch, graphs, dtype, weights, folder, extra=extra)


def check_tools(device: str) -> None:
    """Raises NotHere where this machine cannot compile for `device`."""
    if device == "cuda" and not torch.cuda.is_available():
        raise NotHere("there is no NVIDIA GPU here that torch can use")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise NotHere(f"there is no C++ compiler here ({compiler} was looked for)")


def _compile(
    graphs: Sequence[Graph],
    programs: Path,
    folder: Path,
    device: str,
    progress: Progress,
    tell: Tell,
) -> list[str]:
    """Compiles every program; the CPU features that the code needs. Large graphs come first, so
    that no worker is left alone with one."""
    jobs = deque(sorted((g.name for g in graphs), key=lambda name: -_size(programs, name)))
    onednn = device == "cpu" and onednn_is_faster()
    settings = {"device": device, "level": level(), "onednn": onednn}
    workers = [_Worker(programs, settings) for _ in range(min(WORKERS, len(jobs), _cores()))]
    features: set[str] = set()
    done: list[str] = []

    def work(worker: _Worker) -> None:
        while jobs:
            name = jobs.popleft()
            progress(f"aoti/{name}.pt2", len(done), len(graphs))
            needed, changes = worker.compile(programs / f"{name}.pt2", folder / f"{name}.pt2")
            features.update(needed)
            if tell is not None:
                for change, text in changes.items():
                    tell(Effect(change, name, text))
            done.append(name)

    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            for finished in [pool.submit(work, worker) for worker in workers]:
                finished.result()
    finally:
        jobs.clear()
        for worker in workers:
            worker.close()
    return sorted(features)


def _size(programs: Path, name: str) -> int:
    return (programs / f"{name}.pt2").stat().st_size


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


class _Worker:
    """A process that compiles one program after the other."""

    def __init__(self, scratch: Path, settings: dict[str, Any]) -> None:
        # -P keeps the working directory off the path: a folder named triton/ in it would be
        # taken for a package of that name.
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.log = (scratch / f"worker-{id(self)}.log").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vlmc.emit.torch_graphs.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def compile(self, program: Path, package: Path) -> tuple[list[str], dict[str, str]]:
        """The CPU features that the code in `package` needs, and what was done for this device, by
        name. Raises EnvironmentFault."""
        channel, answers = self.process.stdin, self.process.stdout
        assert channel is not None
        assert answers is not None
        try:
            channel.write(json.dumps([str(program), str(package)]) + "\n")
            channel.flush()
            answer = answers.readline()
        except (OSError, ValueError):
            answer = ""
        if not answer:
            raise EnvironmentFault(f"{program.stem} could not be compiled: {self._last_words()}")
        return json.loads(answer)

    def _last_words(self) -> str:
        self.process.wait()
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        return lines[-1] if lines else f"its compiler ended with {self.process.returncode}"

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.log.close()
