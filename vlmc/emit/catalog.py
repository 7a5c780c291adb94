"""The one list of what a build emits. Adding an artifact is its backend and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vlmc.emit.artifact import Artifact, Build, Emitter, Text
from vlmc.emit.backends import arch_txt, model_py, readme, spec_resolved, weights


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
    TextBackend("arch.txt", lambda build: arch_txt.source(build.arch)),
    TextBackend("spec.resolved.yaml", spec_resolved.source),
)
UNCOMMITTED: tuple[Emitter, ...] = (weights.emit,)


def texts(build: Build) -> list[Text]:
    """The files that follow from the spec alone."""
    return [backend(build) for backend in TEXTS]


def uncommitted(build: Build) -> list[Artifact]:
    """What depends on the machine or on files beside the spec."""
    return [emitter(build) for emitter in UNCOMMITTED]
