"""The atomic writer: a folder is one complete build, before and after, whatever happens between.

The new build grows in a folder beside the old one, on the same file system. What has not changed
is linked into it, and so is whatever else lies in the old folder; then the two change places in
one step and the old one goes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit import swap
from vlmc.emit.artifact import Artifact, Deferred, Progress, Text, silent
from vlmc.emit.carry import carry, link
from vlmc.emit.claim import earlier, located
from vlmc.emit.faults import explained
from vlmc.emit.lock import locked
from vlmc.emit.manifest import NAME, Manifest
from vlmc.emit.record import File, Status, hashed

Describe = Callable[[dict[str, File], dict[str, Status]], Manifest]
"""From the files and artifacts of a build to its manifest."""


def write(
    folder: Path,
    artifacts: Sequence[Artifact],
    describe: Describe,
    *,
    progress: Progress = silent,
) -> Manifest:
    """Makes `folder` the build of `artifacts`. Touches nothing where it is that already.

    Files in it that no build wrote stay. Raises EnvironmentFault where the folder is not vlmc's
    own, another process builds it, or the system refuses; the folder is then as it was.
    """
    with explained(folder):
        real = located(folder)
        places = swap.Places(real)
        real.parent.mkdir(parents=True, exist_ok=True)
        with locked(places.lock, folder):
            swap.complete(places)
            remove(places.staging)
            remove(places.former)
            old = earlier(real)
            try:
                manifest = _stage(places, old, artifacts, describe, progress)
                if manifest is None:
                    assert old is not None
                    return old.at(folder, unchanged=True)
                swap.replace(places)
            except BaseException:
                if not places.journal.exists():
                    remove(places.staging)
                raise
            _retire(places, old)
    return manifest.at(folder)


def _stage(
    places: swap.Places,
    old: Manifest | None,
    artifacts: Sequence[Artifact],
    describe: Describe,
    progress: Progress,
) -> Manifest | None:
    """The whole new build at `staging`, on disk to the last byte; None where it would be the old
    one again."""
    staged = _Staging(places.staging, places.folder, old)
    places.staging.mkdir()
    for artifact in artifacts:
        if isinstance(artifact, Text):
            staged.text(artifact)
        else:
            staged.weights(artifact, progress)
    manifest = describe(staged.files, staged.statuses)
    text = manifest.text().encode()
    if not staged.fresh and _holds(places.folder / NAME, text):
        remove(places.staging)
        return None
    progress("writing")
    _write(places.staging / NAME, text)
    if places.folder.exists():
        shutil.copymode(places.folder, places.staging)
        carry(places.folder, places.staging, _owned(old), strict=True)
    for place, _, _ in os.walk(places.staging, topdown=False):
        swap.sync_folder(Path(place))
    return manifest


class _Staging:
    """A build as it grows: its files, its artifacts, and whether any of it is new."""

    def __init__(self, folder: Path, former: Path, old: Manifest | None) -> None:
        self.folder = folder
        self.former = former
        self.old = old
        self.files: dict[str, File] = {}
        self.statuses: dict[str, Status] = {}
        self.fresh = False

    def text(self, artifact: Text) -> None:
        """Writes a text, or links it where it stands already."""
        target = self.folder / artifact.path
        target.parent.mkdir(parents=True, exist_ok=True)
        self.files[artifact.path] = File.of(artifact.data)
        self.statuses[artifact.path] = Status(status="built", files=(artifact.path,))
        former = self.former / artifact.path
        if self.old and artifact.path in self.old.files and _holds(former, artifact.data):
            link(former, target)
        else:
            self.fresh = True
            _write(target, artifact.data)

    def weights(self, artifact: Artifact, progress: Progress) -> None:
        """Keeps the weights of an earlier build where they still are the right ones, writes them
        otherwise."""
        assert not isinstance(artifact, Text)
        kept = self._kept(artifact)
        if kept is not None:
            for name in kept.files:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                link(self.former / name, self.folder / name)
                assert self.old is not None
                self.files[name] = self.old.files[name]
            self.statuses[artifact.path] = kept
            return
        if isinstance(artifact, Deferred):
            self.statuses[artifact.path] = artifact.status
            return
        self.fresh = True
        target = self.folder / artifact.path
        target.mkdir(parents=True)
        artifact.write(target)
        names: list[str] = []
        for path in sorted(target.rglob("*")):
            if path.is_file():
                progress(f"hashing {path.name}")
                name = path.relative_to(self.folder).as_posix()
                self.files[name] = hashed(path)
                _sync(path)
                names.append(name)
        self.statuses[artifact.path] = Status(
            status="built", files=tuple(names), source=artifact.source
        )

    def _kept(self, artifact: Artifact) -> Status | None:
        assert not isinstance(artifact, Text)
        status = None if self.old is None else self.old.artifacts.get(artifact.path)
        if self.old is None or status is None or status.status != "built":
            return None
        if not isinstance(artifact, Deferred) and artifact.source != status.source:
            return None
        written = (self.former / NAME).stat().st_mtime_ns
        for name in status.files:
            record = self.old.files.get(name)
            if record is None or not _intact(self.former / name, record, written):
                return None
        return status if artifact.fits(self.former / artifact.path) else None


def _intact(path: Path, record: File, written: int) -> bool:
    """Whether a file is as recorded. One that was not touched since the manifest was written needs
    no second hash: weights are large."""
    try:
        found = path.stat(follow_symlinks=False)
        if found.st_size != record.size:
            return False
        return found.st_mtime_ns <= written or hashed(path) == record
    except OSError:
        return False


def _holds(path: Path, data: bytes) -> bool:
    try:
        return not path.is_symlink() and path.read_bytes() == data
    except OSError:
        return False


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _owned(old: Manifest | None) -> frozenset[str]:
    return frozenset() if old is None else old.owned


def _retire(places: swap.Places, old: Manifest | None) -> None:
    """Removes the old build. What was put into it since it was looked through moves over first."""
    for place in (places.staging, places.former):
        if place.is_dir():
            try:
                carry(place, places.folder, _owned(old), strict=False)
                remove(place)
            except (OSError, EnvironmentFault):
                continue  # the new build stands; the next one clears what is left
    swap.sync_folder(places.folder.parent)


def remove(place: Path) -> None:
    """Removes a folder of ours beside the build, if it is there."""
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)
