"""A build as it grows in a folder of its own, taking over from the one before what still holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.artifact import Artifact, Deferred, Graphs, Progress, Text, Weights
from vlmc.emit.carry import link
from vlmc.emit.faults import NotHere
from vlmc.emit.manifest import NAME, Manifest
from vlmc.emit.record import File, Lying, Status, hashed, lying


class Staging:
    """A build as it grows: its files, its artifacts, and whether any of it is new."""

    def __init__(
        self,
        folder: Path,
        former: Path,
        old: Manifest | None,
        laid: Mapping[str, Lying],
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.former = former
        self.old = old
        self.laid = laid
        self.files: dict[str, File] = {}
        self.statuses: dict[str, Status] = {}
        self.fresh = False
        self.progress = progress
        self._placed: dict[File, Path] = {}
        self._hashes: dict[tuple[int, int], File] = {}
        self._made: list[tuple[Graphs, Path, dict[str, File]]] = []

    def add(self, artifact: Artifact) -> None:
        """Writes an artifact, or takes it over from the build before."""
        if isinstance(artifact, Text):
            self.text(artifact)
        else:
            self.folder_of(artifact)

    def text(self, artifact: Text) -> None:
        """Writes a text, or links it where it stands already."""
        target = self.folder / artifact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        self.files[artifact.path] = File.of(artifact.data)
        self.statuses[artifact.path] = Status(status="built", files=(artifact.path,))
        former = self.former / artifact.path
        if self.old and artifact.path in self.old.files and holds(former, artifact.data):
            link(former, target)
        else:
            self.fresh = True
            write(target, artifact.data)

    def folder_of(self, artifact: Weights | Graphs | Deferred) -> None:
        """Keeps a folder of an earlier build where it still is the right one, makes it
        otherwise."""
        needed: dict[str, File] = {}
        inputs = None
        if isinstance(artifact, Graphs):
            if (off := artifact.put_off(self.statuses)) is not None:
                self.statuses[artifact.path] = off
                return
            names = (name for path in artifact.needs for name in self.statuses[path].files)
            needed = {name: self.files[name] for name in names}
            inputs = artifact.inputs(needed)
        kept = self._kept(artifact, inputs)
        if kept is not None:
            self._link(kept)
            self.statuses[artifact.path] = kept
            return
        if isinstance(artifact, Deferred):
            self.statuses[artifact.path] = artifact.status
            return
        self.fresh = True
        target = self.folder / artifact.path
        target.mkdir(parents=True)
        if isinstance(artifact, Graphs):
            try:
                artifact.make(target, needed)
            except NotHere as lacking:
                shutil.rmtree(target)
                self.statuses[artifact.path] = Status(
                    status="deferred", reason=str(lacking), command=artifact.command
                )
                return
            self._made.append((artifact, target, needed))
        else:
            artifact.write(target)
        names = self._record(target)
        source = artifact.source if isinstance(artifact, Weights) else None
        self.statuses[artifact.path] = Status(
            status="built", files=names, source=source, inputs=inputs
        )

    def keep(self) -> None:
        """Tells each folder of graphs that was made that it was found good."""
        for graphs, target, needed in self._made:
            graphs.keep(target, needed)

    def _link(self, kept: Status) -> None:
        """Takes over the files of an earlier build; what is in this build already under another
        name stays one file."""
        assert self.old is not None
        for name in kept.files:
            record = self.old.files[name]
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            link(self._placed.get(record, self.former / name), self.folder / name)
            self._place(name, record)

    def _place(self, name: str, record: File) -> None:
        self.files[name] = record
        self._placed.setdefault(record, self.folder / name)

    def _record(self, target: Path) -> tuple[str, ...]:
        """Hashes the files of a folder that was just made, a file of several names once."""
        for path in sorted(target.rglob("*")):
            if not path.is_file():
                continue
            name = path.relative_to(self.folder).as_posix()
            found = path.stat()
            identity = (found.st_dev, found.st_ino)
            if identity not in self._hashes:
                self.progress(f"hashing {name}")
                self._hashes[identity] = hashed(path)
                _sync(path)
            self._place(name, self._hashes[identity])
        below = target.relative_to(self.folder).as_posix() + "/"
        return tuple(name for name in self.files if name.startswith(below))

    def _kept(self, artifact: Weights | Graphs | Deferred, inputs: str | None) -> Status | None:
        status = None if self.old is None else self.old.artifacts.get(artifact.path)
        if self.old is None or status is None or status.status != "built":
            return None
        if isinstance(artifact, Graphs) and inputs != status.inputs:
            return None
        others = isinstance(artifact, Weights) and artifact.source != status.source
        if others and not _unasked(artifact):
            return None
        changed = self._changed(self.old, status)
        if changed and status.source is not None and _unasked(artifact):
            self._check_gone(changed, artifact)
        if changed or others:
            return None
        fits = isinstance(artifact, Graphs) or artifact.fits(self.former / artifact.path)
        return status if fits else None

    def _changed(self, old: Manifest, status: Status) -> list[str]:
        """The files of an artifact of the earlier build that are not as recorded."""
        written = (self.former / NAME).stat().st_mtime_ns
        return [
            name
            for name in status.files
            if (record := old.files.get(name)) is None or not self._intact(name, record, written)
        ]

    def _intact(self, name: str, record: File, written: int) -> bool:
        """Whether a file of the earlier build is as recorded. One that lies as that build left it,
        and was not touched since its manifest was written, needs no second hash: weights are
        large."""
        path = self.former / name
        try:
            found = lying(path)
            if found[0] != record.size or path.is_symlink():
                return False
            same = self.laid.get(name) == found and path.stat().st_mtime_ns <= written
            return same or hashed(path) == record
        except OSError:
            return False

    def _check_gone(self, changed: Sequence[str], artifact: Weights | Graphs | Deferred) -> None:
        """Raises EnvironmentFault where one of the `changed` files of weights is still there: they
        may have been trained, and nothing makes them again."""
        lost = (
            f"remove it without making it again ({artifact.reason}): move it away, or write it "
            f"anew with {artifact.command}"
            if isinstance(artifact, Deferred)
            else f"write it anew: keep it with --checkpoint {self.former}, or say {_ask(artifact)}"
        )
        for name in changed:
            if os.path.lexists(self.former / name):
                raise EnvironmentFault(
                    f"{self.former / name} has changed since it was built, and this build would "
                    f"{lost}"
                )


def _ask(artifact: Artifact) -> str:
    return artifact.ask if isinstance(artifact, Weights) else ""


def _unasked(artifact: Artifact) -> bool:
    """Whether nobody asked for the values that would take the place of what is there."""
    return isinstance(artifact, Deferred) or bool(_ask(artifact))


def read(path: Path) -> bytes | None:
    """What a file holds; None where there is none to be read."""
    try:
        return None if path.is_symlink() else path.read_bytes()
    except OSError:
        return None


def holds(path: Path, data: bytes) -> bool:
    """Whether a file is there, and holds exactly that."""
    try:
        return not path.is_symlink() and path.read_bytes() == data
    except OSError:
        return False


def write(path: Path, data: bytes) -> None:
    """Writes a new file to the disk. Raises OSError where there is one."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
