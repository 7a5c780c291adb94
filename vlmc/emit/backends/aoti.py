"""aoti/: graphs that AOTInductor has compiled for this machine's processor, without weights."""

from __future__ import annotations

from pathlib import Path

from vlmc.emit.artifact import Artifact, Build
from vlmc.emit.backends.graphs import effects, graphs, telling
from vlmc.emit.fresh import machine

PATH = "aoti"


def emit(build: Build) -> Artifact:
    """The compiled graphs of a build."""

    def fill(weights: Path, folder: Path) -> None:
        from vlmc.emit.torch_graphs import write_aoti

        tell = effects(build, PATH)
        write_aoti(build.arch, weights, folder, progress=telling(build, PATH), tell=tell)

    return graphs(
        build,
        PATH,
        fill,
        sources=("emit/torch_graphs",),
        packages=(),
        options={"machine": machine()},
    )
