"""onnx/: graphs for ONNX Runtime, which read the weights of the build."""

from __future__ import annotations

from pathlib import Path

from vlmc.emit.artifact import Artifact, Build
from vlmc.emit.backends.graphs import effects, graphs, telling

PATH = "onnx"


def emit(build: Build) -> Artifact:
    """The ONNX graphs of a build."""
    given = build.options
    options = {
        "opset": given.opset,
        "quantize": given.quantize,
        "quantize_vision": given.quantize_vision,
        "max_error": given.max_error,
    }

    heard: list[str] = []

    def fill(weights: Path, folder: Path) -> None:
        from vlmc.emit.onnx import OnnxOptions, write  # with onnx, only where it is made

        chosen = OnnxOptions(
            opset=given.opset,
            quantize=given.quantize,
            quantize_vision=given.quantize_vision,
            max_error=given.max_error,
        )
        write(
            build.arch,
            weights,
            folder,
            options=chosen,
            progress=telling(build, PATH),
            tell=effects(build, PATH, heard),
        )

    return graphs(
        build,
        PATH,
        fill,
        sources=("emit/onnx",),
        packages=("onnx", "onnxruntime"),
        options=options,
        heard=heard,
    )
