"""compile/: graphs for torch.compile, without weights."""

from __future__ import annotations

from pathlib import Path

from vlmc.emit.artifact import Artifact, Build
from vlmc.emit.backends.graphs import effects, graphs, telling

PATH = "compile"


def emit(build: Build) -> Artifact:
    """The exported graphs of a build."""

    heard: list[str] = []

    def fill(weights: Path, folder: Path) -> None:
        from vlmc.emit.torch_graphs import write_compile

        tell = effects(build, PATH, heard)
        write_compile(build.arch, weights, folder, progress=telling(build, PATH), tell=tell)

    return graphs(
        build, PATH, fill, sources=("emit/torch_graphs",), packages=(), options={}, heard=heard
    )
