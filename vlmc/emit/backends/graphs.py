"""What the folders of graphs have in common: a recipe, and the store that may have them already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from vlmc.builder.located import located_in
from vlmc.emit.artifact import Build, Graphs, Needed, Progress
from vlmc.emit.recipe import GRAPH_SOURCES, OF_DESIGN, digest, source, versions
from vlmc.emit.record import hashed
from vlmc.emit.store import store
from vlmc.passes.effect import Effect

WEIGHTS = "weights"
VALUES = ".safetensors"
"""Files of a folder of graphs that hold numbers: weights, or what follows from them or from the
design alone."""

Fill = Callable[[Path, Path], None]
"""From the folder of the weights and an empty one to the graphs in it."""


def graphs(
    build: Build,
    path: str,
    fill: Fill,
    *,
    sources: Sequence[str],
    packages: Sequence[str],
    options: Mapping[str, object],
    needs: tuple[str, ...] = (WEIGHTS,),
    cached: bool = True,
    heard: list[str] | None = None,
) -> Graphs:
    """The folder `path` of a build, as `fill` makes it.

    It follows from the design, from `sources` of vlmc and `packages`, from `options` and from the
    weights. `cached` is whether a copy of it may be kept for other builds, and `heard` where
    `effects` notes what it tells, so that it can be told of a copy, too.
    """
    recipe = digest(
        path,
        repr(build.arch),
        source(*GRAPH_SOURCES, *sources),
        versions("torch", *packages),
        sorted(options.items()),
    )
    kept = store(build.note)
    about = f"{path} of {build.arch.name}"
    command = build.command(values_option(build), *build.options.given())

    def make(folder: Path, needed: Needed) -> None:
        weights = _weights(folder, needed, path)
        for key in (_by_values(recipe, needed), _by_shapes(recipe, weights)):
            build.progress(f"{path}: looking into the cache")
            if cached and kept.fetch(key, folder, weights):
                for line in kept.told(key):
                    build.tell(line)
                return
        fill(_above(folder, path) / WEIGHTS, folder)

    def keep(folder: Path, needed: Needed) -> None:
        weights = _weights(folder, needed, path)
        computed = any(_computed(path, weights, needed) for path in folder.rglob(f"*{VALUES}"))
        key = _by_values(recipe, needed) if computed else _by_shapes(recipe, weights)
        if cached:
            kept.keep(key, folder, weights, about, heard or ())

    return Graphs(path=path, recipe=recipe, command=command, needs=needs, make=make, keep=keep)


def values_option(build: Build) -> str:
    """The option that brings the values of a build's weights on another machine."""
    if build.checkpoint is not None:
        return "--checkpoint DIR"
    usual = 0 if build.mini else None
    return "" if build.seed == usual else f"--seed {build.seed}"


def telling(build: Build, path: str) -> Progress:
    """Progress that names the artifact with each stage."""

    def tell(stage: str, done: int = 0, total: int = 0) -> None:
        build.progress(stage if stage.startswith(path) else f"{path}: {stage}", done, total)

    return tell


def effects(build: Build, path: str, heard: list[str]) -> Callable[[Effect], None]:
    """Tells what a pass did to a graph of the artifact `path`, and notes it in `heard`."""

    def tell(effect: Effect) -> None:
        name = effect.pass_name.replace("_", " ")
        heard.append(f"{path}/{effect.graph_name}: {name}: {effect.text}")
        build.tell(heard[-1])

    return tell


def _above(folder: Path, path: str) -> Path:
    """The build that `folder` is the artifact `path` of."""
    return folder.parents[path.count("/")]


def _weights(folder: Path, needed: Needed, path: str) -> dict[str, Path]:
    return {name: _above(folder, path) / name for name in needed if name.endswith(VALUES)}


def _computed(path: Path, weights: Mapping[str, Path], needed: Needed) -> bool:
    """Whether a file holds numbers that follow from the values of the weights, and is none of
    them."""
    if _is_weights(path, weights, needed):
        return False
    file: Any = safe_open(path, "np")
    with file as opened:
        return opened.metadata() != OF_DESIGN


def _is_weights(path: Path, weights: Mapping[str, Path], needed: Needed) -> bool:
    """Whether a file is one of the weights, by a link or as a copy."""
    if any(path.samefile(other) for other in weights.values()):
        return True
    size = path.stat().st_size
    return any(size == needed[name].size and hashed(path) == needed[name] for name in weights)


def _by_values(recipe: str, needed: Needed) -> str:
    """The key of graphs that hold numbers which follow from the weights."""
    return digest(recipe, "values", sorted((name, file.sha256) for name, file in needed.items()))


def _by_shapes(recipe: str, weights: Mapping[str, Path]) -> str:
    """The key of graphs that only say where in the weights' files each tensor lies: the same for
    other weights of the design."""
    heads = {
        name: sorted((key, *one) for key, one in _places(path).items())
        for name, path in weights.items()
    }
    return digest(recipe, "shapes", sorted(heads.items()))


def _places(path: Path) -> dict[str, tuple[object, ...]]:
    """Types, shapes and places of the tensors in a safetensors file, by name."""
    found = located_in(path)
    return {name: (one.dtype, one.shape, one.begin, one.end) for name, one in found.items()}
