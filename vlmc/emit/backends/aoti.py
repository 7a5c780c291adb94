"""aoti/: graphs that AOTInductor has compiled for this machine, without weights: for its GPU where
there is one, else for its processor."""

from __future__ import annotations

from pathlib import Path

import torch

from vlmc.emit.artifact import Artifact, Build
from vlmc.emit.backends.graphs import effects, graphs, telling
from vlmc.emit.fresh import machine

PATH = "aoti"


def emit(build: Build) -> Artifact:
    """The compiled graphs of a build."""

    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = torch.cuda.get_device_capability() if device == "cuda" else None

    heard: list[str] = []

    def fill(weights: Path, folder: Path) -> None:
        from vlmc.emit.torch_graphs import write_aoti

        tell = effects(build, PATH, heard)
        write_aoti(
            build.arch,
            weights,
            folder,
            progress=telling(build, PATH),
            device=device,
            tell=tell,
        )

    return graphs(
        build,
        PATH,
        fill,
        sources=("emit/torch_graphs",),
        packages=(),
        options={"machine": machine(), "device": device, "gpu": gpu},
        heard=heard,
    )
