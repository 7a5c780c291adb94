"""What one build leaves: texts, weights, and what had to be put off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vlmc.emit.record import Status
from vlmc.ir import Arch, Role
from vlmc.spec.document import ModelSpec


class Progress(Protocol):
    """Told what is being done, and how far it is where that can be said."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What an emitter is given."""

    spec: ModelSpec
    """The design that is built: the twin's where `mini`."""
    arch: Arch
    origin: str
    """The spec file as a command would name it, with the overrides on top (`--set`), quoted for a
    shell; no path of the present machine."""
    mini: bool = False
    checkpoint: Path | None = None
    seed: int | None = None
    folder: Path = Path()
    """Where it will be written."""
    parts: Mapping[Role, Path] = field(default_factory=dict[Role, Path])
    """The checkpoint folder of each part that has one of its own."""
    progress: Progress = silent

    def command(self, *options: str) -> str:
        """The command that makes this build, with more options."""
        given = (option for option in options if option)
        return " ".join(("vlmc build", self.origin, *(["--mini"] * self.mini), *given))


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A file that follows from the spec alone: the same bytes on any machine, so committed."""

    path: str
    text: str

    @property
    def data(self) -> bytes:
        """The bytes of the file."""
        return self.text.encode(errors="backslashreplace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A folder of safetensors files, streamed to disk when it is written. Never committed."""

    path: str
    source: str
    """What the values come from, such as `seed 0`: weights of one source are made once."""
    write: Callable[[Path], None]
    """Fills an empty folder."""
    fits: Callable[[Path], bool]
    """Whether a folder holds the tensors of this design, by their names and shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """An artifact that this build does not make, with the reason and the command that does."""

    path: str
    reason: str
    command: str
    fits: Callable[[Path], bool]
    """Whether what an earlier build left at `path` belongs to this design, so that it may stay."""

    @property
    def status(self) -> Status:
        """The entry of the manifest."""
        return Status(status="deferred", reason=self.reason, command=self.command)


Artifact = Text | Weights | Deferred


class Emitter(Protocol):
    """Makes one artifact of a build. Writes nothing itself."""

    def __call__(self, build: Build) -> Artifact: ...
