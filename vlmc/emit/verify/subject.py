"""What is measured: a build, or its twin where this machine cannot hold the design twice."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vlmc.builder.model import instantiate
from vlmc.builder.shards import stored_tensors
from vlmc.builder.values import valued
from vlmc.builder.weights import load_weights, save_weights
from vlmc.diagnostics.amount import volume
from vlmc.emit.artifact import Build, Graphs
from vlmc.emit.options import Dtype
from vlmc.emit.room import bytes_twice, holds_twice
from vlmc.emit.verify.cases import Case, cases
from vlmc.resolver import resolve
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.placement import dtype_of

ONE_THREAD = 100_000_000
"""Parameters for each thread that a comparison uses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured: a build folder, its model in fp32, and the inputs."""

    measured: Literal["full", "twin"]
    folder: Path
    design: Design
    dtype: Dtype
    size: int
    """Parameters."""
    eager: Engine
    stored: Callable[[], Engine]
    """Makes the same in the number formats of the build's weights."""
    cases: list[Case]


@contextmanager
def threads(size: int) -> Generator[None]:
    """As many threads as a model of `size` parameters has work for: threads that wait for each
    other at every step slow a small one down fivefold where other processes run."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, size // ONE_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def measurable(build: Build, folder: Path) -> Generator[Subject]:
    """The build itself where this machine can hold it twice; otherwise a build of its twin, made
    for the purpose."""
    if holds_twice(build.arch):
        yield _subject(build, folder, "full")
        return
    build.note(
        f"{build.arch.name} is verified on its laptop-size twin: twice its weights in fp32 are "
        f"{volume(bytes_twice(build.arch))}, which are not free here"
    )
    with tempfile.TemporaryDirectory(prefix="vlmc-") as place:
        yield _subject(_twin(build, Path(place), number_format(folder)), Path(place), "twin")


def number_format(folder: Path) -> Dtype:
    """The number format of a build's weights: the narrowest of them."""
    found = {one.dtype for one in stored_tensors(folder / "weights").values()}
    narrow: dict[str, Dtype] = {"BF16": "bf16", "F16": "fp16"}
    named: list[Dtype] = [name for stored, name in narrow.items() if stored in found]
    return named[0] if named else "fp32"


def _twin(build: Build, folder: Path, dtype: Dtype) -> Build:
    """The laptop-size twin of a build with its own weights and graphs, made in `folder`."""
    from vlmc.emit import catalog

    build.progress("verifying: making the twin")
    twin = replace(
        build,
        spec=build.spec.mini(),
        arch=resolve(build.spec, mini=True),
        mini=True,
        checkpoint=None,
        parts={},
        seed=0,
        folder=folder,
        options=replace(build.options, layout=None, dtype=dtype),
    )
    save_weights(valued(twin.arch, seed=0, dtype=dtype_of(dtype)), folder / "weights")
    for artifact in catalog.uncommitted(twin):
        if isinstance(artifact, Graphs):
            (folder / artifact.path).mkdir()
            artifact.make(folder / artifact.path, {})
    if build.options.layout is not None:
        # The graphs alone: no tokenizer and no picture is looked at here.
        from vlmc.emit.layout.transformers_js import named

        named(twin.arch, folder, folder / build.options.layout, {})
    return twin


def _subject(build: Build, folder: Path, measured: Literal["full", "twin"]) -> Subject:
    build.progress("verifying: eager")
    design = describe(build.spec, build.arch)

    def eager(dtype: torch.dtype | None) -> Engine:
        model = load_weights(instantiate(build.arch), folder / "weights", dtype=dtype)
        return EagerEngine(model.eval().requires_grad_(False), design)

    return Subject(
        measured=measured,
        folder=folder,
        design=design,
        dtype=number_format(folder),
        size=build.arch.parameters,
        eager=eager(torch.float32),
        stored=lambda: eager(None),
        cases=cases(design),
    )
