"""What one build leaves: texts, weights, graphs, and what had to be put off."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vlmc.emit.options import Options
from vlmc.emit.record import File, Status
from vlmc.ir import Arch, Role
from vlmc.spec.document import ModelSpec


class Progress(Protocol):
    """Told what is being done, and how far it is where that can be said."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


def silent(stage: str, done: int = 0, total: int = 0) -> None:
    """Tells nobody."""


def unheard(line: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What an emitter is given."""

    spec: ModelSpec
    """The design that is built: the twin's where `mini`."""
    arch: Arch
    design: ModelSpec
    """The design whose twin `spec` is, where `mini`; else the same. It has the target."""
    origin: str
    """The spec file as a command would name it, with the overrides on top (`--set`), quoted for a
    shell; no path of the present machine."""
    mini: bool = False
    checkpoint: Path | None = None
    seed: int | None = None
    recorded: bool = False
    """Whether the values are those that a build folder was made with, and not said in the call."""
    folder: Path = Path()
    """Where it will be written."""
    parts: Mapping[Role, Path] = field(default_factory=dict[Role, Path])
    """The checkpoint folder of each part that has one of its own."""
    options: Options = field(default_factory=Options)
    """How its artifacts are made. No text depends on them."""
    progress: Progress = silent
    tell: Callable[[str], None] = unheard
    """Told what each pass over a graph did, a line each."""
    note: Callable[[str], None] = unheard
    """Told what a user should know though nothing failed."""

    def command(self, *options: str) -> str:
        """The command that makes the texts of this build, with more options."""
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
    ask: str = ""
    """Where the call did not ask for these values, the option that does: files of an earlier build
    that were changed since (trained) are replaced by nothing else."""


Needed = Mapping[str, File]
"""The files that an artifact is made from, by their paths in the build, with their hashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """A folder that is made from the design and from artifacts of the same build, which lie beside
    it when it is made. It is made again only when what it is made from has changed. Never
    committed."""

    path: str
    recipe: str
    """A hash of everything that it depends on beside the files that it needs."""
    command: str = ""
    """What makes it on a machine that can."""
    needs: tuple[str, ...] = ("weights",)
    """Artifacts of the same build, earlier in the list. Where one is put off, so is this."""
    make: Callable[[Path, Needed], None]
    """Fills an empty folder. Raises NotHere where the present machine cannot."""
    keep: Callable[[Path, Needed], None] = lambda folder, needed: None
    """Told of a folder that was made and found good."""

    def put_off(self, statuses: Mapping[str, Status]) -> Status | None:
        """Its status where something that it needs is deferred; None where it can be made."""
        for path in self.needs:
            if statuses[path].status == "deferred":
                command = statuses[path].command
                return Status(status="deferred", reason=f"it needs {path}", command=command)
        return None

    def inputs(self, needed: Needed) -> str:
        """The hash of all that the folder follows from."""
        lines = [self.recipe, *(f"{name} {file.sha256}" for name, file in sorted(needed.items()))]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """An artifact that this build does not make, with the reason and the command that does."""

    path: str
    reason: str
    command: str
    fits: Callable[[Path], bool] = lambda folder: False
    """Whether what an earlier build left at `path` belongs to this design, so that it may stay."""
    by_host: bool = False
    """Whether it is the present machine that stands in the way, which may have changed by the next
    build."""

    @property
    def status(self) -> Status:
        """The entry of the manifest."""
        return Status(status="deferred", reason=self.reason, command=self.command)


Artifact = Text | Weights | Graphs | Deferred


class Emitter(Protocol):
    """Makes one artifact of a build. Writes nothing itself."""

    def __call__(self, build: Build) -> Artifact: ...
