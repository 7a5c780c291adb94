"""compile/: graphs for torch.compile, without weights."""

from __future__ import annotations

from pathlib import Path

from vlmc.emit.artifact import Artifact, Build
from vlmc.emit.backends.graphs import effects, graphs, telling

PATH = "compile"
SOURCES = ("emit/torch_graphs", "hardware/processor.py", "runtime/engines")
"""The parts of vlmc that export and compile programs; the last writes code into steps."""


def emit(build: Build) -> Artifact:
    """The exported graphs of a build."""

    heard: list[str] = []

    def fill(weights: Path, folder: Path) -> None:
        from vlmc.emit.torch_graphs import write_compile

        tell = effects(build, PATH, heard)
        write_compile(build.arch, weights, folder, progress=telling(build, PATH), tell=tell)

    return graphs(build, PATH, fill, sources=SOURCES, packages=(), options={}, heard=heard)
