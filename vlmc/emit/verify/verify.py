"""From a build to what its artifacts compute, and how far that is from eager."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from vlmc.builder.model import instantiate
from vlmc.builder.shards import stored_tensors
from vlmc.builder.values import valued
from vlmc.builder.weights import load_weights, save_weights
from vlmc.diagnostics import EnvironmentFault
from vlmc.diagnostics.amount import volume
from vlmc.emit.artifact import Build, Graphs
from vlmc.emit.manifest import Manifest
from vlmc.emit.options import Dtype
from vlmc.emit.verify.cases import Case, cases
from vlmc.emit.verify.measure import Trace, compare, trace
from vlmc.emit.verify.record import Measured, Verification, Verified
from vlmc.hardware.host import free_memory
from vlmc.resolver import resolve
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.placement import dtype_of

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
"""The largest error of an engine, relative to eager fp32, by the number format of its weights."""

ENGINES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "compile": ("compile", ("torch",)),
    "onnx": ("onnx", ("onnxruntime",)),
    "aoti": ("aoti", ("torch",)),
}
"""The engines: the artifact that each executes, and the packages that it does so with."""

BESIDE = 2**30
"""Bytes of memory for activations and the interpreter, beside the weights."""


class Unsound(EnvironmentFault):
    """An artifact that does not compute what the model computes."""


def verifier(build: Build) -> Callable[[Path, Manifest, bytes | None], bytes | None]:
    """What the writer asks about a new build before it takes the place of the old one. What was
    measured of an artifact that is the same still is not measured again."""

    def judge(folder: Path, manifest: Manifest, before: bytes | None) -> bytes | None:
        former = Verification.parse(before)
        known = {} if former is None else dict(former.engines)
        for name, found in list(known.items()):
            status = manifest.artifacts.get(found.artifact)
            if status is None or status.inputs != found.inputs or not found.sound:
                del known[name]
        measured = verify(build, folder, manifest, known)
        for name, found in measured.engines.items():
            if not found.sound:
                raise Unsound(complaint(name, found))
        if not measured.engines:
            return None
        return before if measured == former else measured.text().encode()

    return judge


def complaint(name: str, found: Verified) -> str:
    """What is wrong with an artifact, by its name."""
    worst = max(found.cases, key=lambda case: case.max_relative)
    return (
        f"{found.artifact}/ does not compute what the model does: with the engine {name} "
        f"{worst.graph} is {worst.max_relative:.1e} off eager fp32 ({worst.case}), relative to its "
        f"largest number, and {found.tolerance:.0e} is allowed"
    )


def verify(
    build: Build, folder: Path, manifest: Manifest, known: Mapping[str, Verified]
) -> Verification:
    """Everything about the artifacts of `manifest`, which lie in `folder`: what is `known`, and the
    rest measured. Raises Unsound for an artifact that cannot be executed at all."""
    built = {path for path, status in manifest.artifacts.items() if status.status == "built"}
    engines = dict(known)
    wanted = [n for n, (path, _) in ENGINES.items() if path in built and n not in known]
    if wanted:
        with _measurable(build, folder) as subject:
            expected = [trace(subject.eager, case, None) for case in subject.cases]
            for name in wanted:
                path, packages = ENGINES[name]
                build.progress(f"verifying {path}")
                found = _measure(name, subject, expected, build)
                engines[name] = Verified(
                    artifact=path,
                    inputs=manifest.artifacts[path].inputs,
                    measured=subject.measured,
                    tolerance=TOLERANCES[subject.dtype],
                    max_abs=max(one.max_abs for one in found),
                    max_relative=max(one.max_relative for one in found),
                    tokens=_agreement(found),
                    runtime={package: version(package) for package in packages},
                    cases=tuple(found),
                )
    ordered = {name: engines[name] for name in ENGINES if name in engines}
    return Verification(host=_host(), engines=ordered)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is measured: a build folder, its model in fp32, and the inputs."""

    measured: Literal["full", "twin"]
    folder: Path
    design: Design
    dtype: Dtype
    eager: Engine
    cases: list[Case]


@contextmanager
def _measurable(build: Build, folder: Path) -> Generator[_Subject]:
    """The build itself where this machine can hold it twice; otherwise a build of its twin, made
    for the purpose."""
    if 8 * build.arch.parameters + BESIDE <= free_memory():
        yield _subject(build, folder, "full")
        return
    build.note(
        f"{build.arch.name} is verified on its laptop-size twin: twice its weights in fp32 are "
        f"{volume(8 * build.arch.parameters)}, which are not free here"
    )
    with tempfile.TemporaryDirectory(prefix="vlmc-") as place:
        yield _subject(_twin(build, Path(place), _dtype(folder)), Path(place), "twin")


def _dtype(folder: Path) -> Dtype:
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
    return twin


def _subject(build: Build, folder: Path, measured: Literal["full", "twin"]) -> _Subject:
    build.progress("verifying: eager")
    design = describe(build.spec, build.arch)
    model = load_weights(instantiate(build.arch), folder / "weights", dtype=torch.float32)
    model = model.eval().requires_grad_(False)
    return _Subject(
        measured=measured,
        folder=folder,
        design=design,
        dtype=_dtype(folder),
        eager=EagerEngine(model, design),
        cases=cases(design),
    )


def _measure(name: str, subject: _Subject, expected: list[Trace], build: Build) -> list[Measured]:
    from vlmc.runtime.engines.open import open_engine

    try:
        engine = open_engine(subject.folder, name, subject.design)
        found: list[Measured] = []
        for index, (case, right) in enumerate(zip(subject.cases, expected, strict=True)):
            build.progress(f"verifying {name}: {case.name}", index, len(expected))
            found += compare(case, right, trace(engine, case, right.tokens()))
        return found
    except Exception as error:  # each runtime fails in its own way
        first = str(error).strip().splitlines()
        raise Unsound(
            f"{ENGINES[name][0]}/ cannot be executed by the engine {name}: "
            f"{type(error).__name__}: {first[0] if first else ''}"
        ) from error


def _agreement(found: list[Measured]) -> float:
    """The share of tokens that agree, over all cases."""
    judged = [(one.tokens, (one.steps + 1) * len(one.lengths)) for one in found]
    known = [(share, weight) for share, weight in judged if share is not None]
    return sum(share * weight for share, weight in known) / max(1, sum(w for _, w in known))


def _host() -> dict[str, str]:
    name = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    return {"cpu": name, "system": platform.system(), "python": platform.python_version()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
