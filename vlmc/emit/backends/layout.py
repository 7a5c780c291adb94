"""transformers.js/: the ONNX graphs under the names that other people's clients expect."""

from __future__ import annotations

from pathlib import Path

from vlmc.emit.artifact import Artifact, Build
from vlmc.emit.backends import onnx
from vlmc.emit.backends.graphs import WEIGHTS, graphs
from vlmc.emit.beside import beside

PATH = "transformers.js"
SOURCES = ("emit/layout", "runtime")


def emit(build: Build) -> Artifact:
    """The folder for transformers.js. Raises UsageError where it has no class for the design."""
    from vlmc.emit.layout.transformers_js import check, transformers_js

    check(build.arch)

    def fill(weights: Path, folder: Path) -> None:
        build.progress(f"{PATH}: writing")
        transformers_js(build.arch, build.spec, weights.parent, folder, build.folder)

    return graphs(
        build,
        PATH,
        fill,
        sources=SOURCES,
        packages=("onnx",),
        options={"tokenizer": beside(build)},
        needs=(WEIGHTS, onnx.PATH),
        cached=False,  # it is renamed in less time than it is copied
    )
