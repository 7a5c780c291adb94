"""onnx/: graphs for ONNX Runtime, which read the weights of the build."""

from __future__ import annotations

from pathlib import Path

from vlmc.emit.artifact import Artifact, Build
from vlmc.emit.backends.graphs import effects, graphs, telling

PATH = "onnx"
SOURCES = ("emit/onnx", "runtime")
"""The parts of vlmc that write them, and that measure what a narrow format loses."""
FOLLOWED = ("opset", "quantize", "quantize_vision", "max_error")
"""The options that graphs follow from, beside the number format of the weights."""


def emit(build: Build) -> Artifact:
    """The ONNX graphs of a build."""
    options = build.options
    heard: list[str] = []

    def fill(weights: Path, folder: Path) -> None:
        from vlmc.emit.onnx import write  # with onnx, only where it is made

        write(
            build.arch,
            weights,
            folder,
            options=options,
            progress=telling(build, PATH),
            tell=effects(build, PATH, heard),
        )

    return graphs(
        build,
        PATH,
        fill,
        sources=SOURCES,
        packages=("onnx", "onnxruntime"),
        options={name: getattr(options, name) for name in FOLLOWED},
        heard=heard,
    )
