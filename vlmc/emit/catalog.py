"""The one list of what a build emits. Adding an artifact is its backend and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlmc.emit.artifact import Artifact, Build, Emitter, Text
from vlmc.emit.backends import (
    aoti,
    arch_txt,
    compile_graphs,
    layout,
    model_py,
    onnx,
    plan_yaml,
    readme,
    run_py,
    spec_resolved,
    weights,
)
from vlmc.emit.parallel import train_py
from vlmc.spec.document import ArtifactName


@dataclass(frozen=True, slots=True)
class TextBackend:
    """An emitter of one text file."""

    path: str
    source: Callable[[Build], str]

    def __call__(self, build: Build) -> Text:
        return Text(path=self.path, text=self.source(build))


TEXTS: tuple[TextBackend, ...] = (
    TextBackend("README.md", readme.source),
    TextBackend("model.py", lambda build: model_py.source(build.arch)),
    TextBackend("run.py", lambda build: run_py.source(build.spec, build.arch)),
    TextBackend(train_py.PATH, lambda build: train_py.source(build.spec, build.arch)),
    TextBackend("arch.txt", lambda build: arch_txt.source(build.arch)),
    TextBackend("spec.resolved.yaml", spec_resolved.source),
)
UNCOMMITTED: tuple[tuple[ArtifactName, Emitter], ...] = (
    ("model", weights.emit),
    ("compile", compile_graphs.emit),
    ("onnx", onnx.emit),
    ("aoti", aoti.emit),
)
"""In the order in which they are made, each with the word of the language that asks for it."""


def texts(build: Build) -> list[Text]:
    """The files that follow from the spec alone."""
    return [*(backend(build) for backend in TEXTS), *plan_yaml.emit(build)]


def uncommitted(build: Build) -> list[Artifact]:
    """What depends on the machine or on files beside the spec."""
    asked = [emitter for name, emitter in UNCOMMITTED if name in build.spec.artifacts]
    if build.options.layout is not None:
        asked.append(layout.emit)
    none = plan_yaml.absent(build)
    elsewhere = aoti.for_target(build) if "aoti" in build.spec.artifacts else None
    absent = [one for one in (elsewhere, none) if one is not None]
    return [*(emitter(build) for emitter in asked), *absent]
