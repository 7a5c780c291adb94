"""aoti/: graphs that AOTInductor has compiled for this machine, without weights: for its GPU where
there is one, else for its processor. What the target needs and this machine cannot make is put off.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vlmc.emit.artifact import Artifact, Build, Deferred
from vlmc.emit.backends.compile_graphs import SOURCES
from vlmc.emit.backends.graphs import effects, graphs, telling, values_option
from vlmc.emit.fresh import machine
from vlmc.hardware import device as device_of

PATH = "aoti"
CUDA = "aoti/cuda"
"""The name by which the graphs for CUDA are put off where aoti/ is for the processor."""


def emit(build: Build) -> Artifact:
    """The compiled graphs of a build. Where they are for a GPU, the build notes it, with the
    command that makes those for the processor."""

    device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = torch.cuda.get_device_capability() if device == "cuda" else None
    if gpu is not None:
        build.note(
            f"{PATH}/ is compiled for the CUDA device of this machine (capability {gpu[0]}.{gpu[1]}"
            f"); for its processor: CUDA_VISIBLE_DEVICES= {_command(build)}"
        )

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
        sources=SOURCES,
        packages=(),
        options={"machine": machine(), "device": device, "gpu": gpu},
        heard=heard,
    )


def for_target(build: Build) -> Deferred | None:
    """The graphs for the target where it is a CUDA device and the present machine has none; None
    otherwise, since then aoti/ is what there is to make."""
    target = build.spec.target
    if target is None or torch.cuda.is_available() or not device_of(target.hardware).cuda:
        return None
    return Deferred(
        path=CUDA,
        reason=f"there is no CUDA device here, and the target, {target.hardware}, is one: {PATH}/ "
        "is for the processor of this machine",
        command=_command(build),
    )


def _command(build: Build) -> str:
    """What makes the graphs on another machine, with the values of the same weights."""
    valueless = build.checkpoint is None and build.seed is None and not build.parts
    option = "--checkpoint DIR" if valueless else values_option(build)
    return build.command(option, *build.options.given())
