"""manifest.json: what a build consists of, what was put off, and what was predicted."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError

from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.emit.artifact import Build
from vlmc.emit.faults import explained
from vlmc.emit.options import Options
from vlmc.emit.record import File, Inside, Record, Sha256, Status, hashed
from vlmc.emit.seal import SEAL, intact, sealed
from vlmc.emit.swap import Places, recover
from vlmc.ir import Arch
from vlmc.version import __version__

NAME = "manifest.json"
MEASURED = "verification.json"
"""What was measured of a build on the present machine: not part of what it is."""
SCHEMA = 1
MAX_BYTES = 16_000_000


class UnreadableManifest(EnvironmentFault):
    """A manifest.json that vlmc did not write, or that was damaged since."""


def _takes(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, if they are such as a build has. Raises ValueError."""
    try:
        return Options(**options).unusual
    except (TypeError, UsageError) as error:
        raise ValueError(str(error)) from None


class Predictions(Record):
    """What the types of the design say of it."""

    parameters: int
    trainable: int
    by_part: Mapping[str, int]
    tokens: Mapping[str, int | None]

    @staticmethod
    def of(arch: Arch) -> Predictions:
        """The predictions for `arch`."""
        tokens = arch.tokens
        return Predictions(
            parameters=arch.parameters,
            trainable=arch.trainable_parameters,
            by_part={node.role: node.count for node in arch.nodes},
            tokens={
                "images": tokens.images,
                "per_image": tokens.per_image,
                "in_sequence": tokens.in_sequence,
                "text": tokens.text,
                "sequence": tokens.sequence,
                "context": tokens.context,
                "memory": tokens.memory,
            },
        )


class Manifest(Record):
    """A build. `folder` and `unchanged` are known where it was built or read, and not written."""

    version_of_schema: Literal[1] = Field(default=SCHEMA, alias="schema")
    generator: Literal["vlmc"] = "vlmc"
    version: str
    """Of vlmc."""
    name: str
    origin: str
    """The spec file with its overrides, as a command would name them."""
    mini: bool
    spec_sha256: Sha256
    """Of spec.resolved.yaml: two builds of one hash are builds of one design."""
    options: Annotated[Mapping[str, Any], AfterValidator(_takes)] = {}
    """How its artifacts are made, where that is not the usual way: a build of the folder is made in
    the same way again."""
    files: Mapping[Inside, File]
    artifacts: Mapping[str, Status]
    predictions: Predictions
    _folder: Path | None = PrivateAttr(default=None)
    _unchanged: bool = PrivateAttr(default=False)
    _call: tuple[str, str] | None = PrivateAttr(default=None)

    @staticmethod
    def of(build: Build, files: Mapping[str, File], artifacts: Mapping[str, Status]) -> Manifest:
        """The manifest of `build` when it has come to these files."""
        return Manifest(
            version=__version__,
            name=build.arch.name,
            origin=build.origin,
            mini=build.mini,
            spec_sha256=files["spec.resolved.yaml"].sha256,
            options=build.options.unusual,
            files=files,
            artifacts=artifacts,
            predictions=Predictions.of(build.arch),
        )

    @property
    def folder(self) -> Path | None:
        """Where the build is."""
        return self._folder

    @property
    def unchanged(self) -> bool:
        """Whether the build stood already and nothing was written."""
        return self._unchanged

    @property
    def seed(self) -> int | None:
        """The seed that weights were drawn from, alone or beside checkpoints of parts."""
        weights = self.artifacts.get("weights")
        source = "" if weights is None else weights.source or ""
        found = re.search(r"(?:^|, )seed (\d+)", source)
        return None if found is None else int(found[1])

    def at(self, folder: Path, *, unchanged: bool = False) -> Manifest:
        """The same manifest, found at `folder`."""
        placed = self.model_copy()
        placed._folder, placed._unchanged = folder, unchanged
        return placed

    def called(self, command: str, options: str) -> Manifest:
        """The same manifest, made by `command` with `options` at its end: as they are typed on
        this machine, so they are shown and not written."""
        typed = self.model_copy()
        typed._call = (command, options)
        return typed

    def typed(self, command: str) -> str:
        """A command of the manifest as it is typed on this machine."""
        if self._call is None:
            return command
        here, options = self._call
        there = f"vlmc build {self.origin}"
        return f"{here}{command.removeprefix(there)}{options}"

    @property
    def owned(self) -> frozenset[str]:
        """Every file that vlmc wrote, this one included."""
        return frozenset((*self.files, NAME))

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        document = self.model_dump(mode="json", by_alias=True)
        if not self.options:
            del document["options"]
        document["artifacts"] = {
            path: status.model_dump(mode="json", exclude_defaults=True)
            for path, status in self.artifacts.items()
        }
        return document

    def text(self) -> str:
        """The text of manifest.json, with its seal."""
        return sealed(self.to_json())

    def summary(self) -> str:
        """What a person wants to know after a build."""
        where = self.name if self._folder is None else str(self._folder)
        state = "is up to date" if self._unchanged else "built"
        lines = [f"{where}: {state}, {len(self.files) + 1} files"]
        for path, artifact in self.artifacts.items():
            if artifact.status == "deferred":
                lines.append(f"  {path} deferred: {artifact.reason}")
                command = f"    {self.typed(artifact.command or '')}"
                lines = [line for line in lines if line != command]
                lines.append(command)
        return "\n".join(lines)

    def verify(self, folder: Path) -> list[str]:
        """What is wrong with the files of a build: those that are missing, changed (by their hash),
        or have been put among those of an artifact; its records included, by their seals."""
        faults = _broken_seals(folder)
        hashes: dict[tuple[int, int], File] = {}
        for name, record in self.files.items():
            try:
                stat = (folder / name).stat()
                identity = (stat.st_dev, stat.st_ino)
                if identity not in hashes:  # a file may have several names here
                    hashes[identity] = hashed(folder / name)
                if (found := hashes[identity]) != record:
                    faults.append(f"{name} has changed since it was built: {found.size:,} bytes")
            except OSError as error:
                faults.append(f"{name} cannot be read: {error.strerror}")
        for artifact in self.artifacts:
            for path in sorted((folder / artifact).rglob("*")):
                name = path.relative_to(folder).as_posix()
                if not path.is_dir() and name not in self.files:
                    faults.append(f"{name} was put there since it was built")
        return faults

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a build folder; a build that was cut off half-way in is completed first.

        Raises UnreadableManifest where there is none or where it is anything but what vlmc writes.
        """
        path = folder / NAME
        with explained(folder):
            recover(Places(Path(os.path.realpath(folder))))
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise UnreadableManifest(
                f"{folder} is not a build of vlmc: {NAME} cannot be read ({error.strerror})"
            ) from None
        return Manifest.parse(data, path).at(folder)

    @staticmethod
    def parse(data: bytes, path: Path | PurePosixPath) -> Manifest:
        """The manifest that `data` holds. Raises UnreadableManifest, naming `path`."""
        try:
            if len(data) > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
            document: Any = json.loads(data.decode())
            version = document.get("schema") if isinstance(document, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            if isinstance(version, int) and version > SCHEMA:
                raise ValueError(
                    f"a newer vlmc wrote it (schema {version}; this one reads {SCHEMA})"
                )
            if isinstance(document, dict):
                document.pop(SEAL, None)  # pyright: ignore[reportUnknownMemberType]
            return Manifest.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(step)[:60] for step in first["loc"]) or "the whole"
            reason = f"{place}: {first['msg']}"
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as error:
            reason = str(error)[:200]
        raise UnreadableManifest(f"{path} is not a manifest that vlmc wrote: {reason}")


def _broken_seals(folder: Path) -> list[str]:
    """What has changed of a build's records of itself, which no other record has the hash of."""
    faults: list[str] = []
    for name, remedy in ((NAME, "build it again"), (MEASURED, "remove it to measure again")):
        path = folder / name
        try:
            if not intact(path.read_bytes()):
                faults.append(f"{name} has changed since it was written; {remedy}")
        except FileNotFoundError:
            continue
        except OSError as error:
            faults.append(f"{name} cannot be read: {error.strerror}")
    return faults
