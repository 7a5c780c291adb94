"""The atomic writer: a folder is one complete build, before and after, whatever happens between.

The new build grows in a folder beside the old one, on the same file system. What has not changed
is linked into it, and so is whatever else lies in the old folder; then the two change places in
one step and the old one goes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit import swap
from vlmc.emit.artifact import Artifact, Progress, silent
from vlmc.emit.carry import carry
from vlmc.emit.claim import earlier, located
from vlmc.emit.faults import explained
from vlmc.emit.lock import locked
from vlmc.emit.manifest import MEASURED, NAME, Manifest
from vlmc.emit.record import File, Lying, Status
from vlmc.emit.staging import Staging, holds, read
from vlmc.emit.staging import write as put

Describe = Callable[[dict[str, File], dict[str, Status]], Manifest]
"""From the files and artifacts of a build to its manifest."""

Verify = Callable[[Path, Manifest, bytes | None], bytes | None]
"""From a whole build, its manifest and what was measured of the build before it to what was
measured of it, if anything was. Raises where an artifact is not what it should be."""


UNKNOWN: Mapping[str, Lying] = {}


def unverified(folder: Path, manifest: Manifest, before: bytes | None) -> None:
    """Measures nothing."""


def write(
    folder: Path,
    artifacts: Sequence[Artifact],
    describe: Describe,
    *,
    laid: Mapping[str, Lying] = UNKNOWN,
    verify: Verify = unverified,
    progress: Progress = silent,
) -> Manifest:
    """Makes `folder` the build of `artifacts`. Touches nothing where it is that already.

    `laid` is how its files lay when the last build of it ended: those that lie so still are not
    hashed again. Files in it that no build wrote stay. Raises EnvironmentFault where the folder is
    not vlmc's own, another process builds it, or the system refuses, and what `verify` raises; the
    folder is then as it was.
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
                manifest = _stage(places, old, artifacts, describe, laid, verify, progress)
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
    laid: Mapping[str, Lying],
    verify: Verify,
    progress: Progress,
) -> Manifest | None:
    """The whole new build at `staging`, on disk to the last byte; None where it would be the old
    one again."""
    staged = Staging(places.staging, places.folder, old, laid, progress)
    places.staging.mkdir()
    for artifact in artifacts:
        staged.add(artifact)
    manifest = describe(staged.files, staged.statuses)
    text = manifest.text().encode()
    put(places.staging / NAME, text)
    before = None if old is None else read(places.folder / MEASURED)
    measured = verify(places.staging, manifest, before)
    staged.keep()
    if not staged.fresh and measured == before and holds(places.folder / NAME, text):
        remove(places.staging)
        return None
    progress("writing")
    if measured is not None:
        put(places.staging / MEASURED, measured)
    if places.folder.exists():
        shutil.copymode(places.folder, places.staging)
        carry(places.folder, places.staging, _owned(old), strict=True)
    for place, _, _ in os.walk(places.staging, topdown=False):
        swap.sync_folder(Path(place))
    return manifest


def _owned(old: Manifest | None) -> frozenset[str]:
    return frozenset() if old is None else old.owned | {MEASURED}


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
