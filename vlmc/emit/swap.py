"""Putting one folder in the place of another in a single step.

Linux and macOS exchange two names at once. Elsewhere, and on file systems that cannot, the old
folder steps aside and the new one takes its name; a journal beside them is the commit: whoever
comes next completes what it announces.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.lock import Busy, locked

_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV)


@dataclass(frozen=True, slots=True)
class Places:
    """The names that a build of `folder` uses beside it, all on one file system.

    They are short whatever the folder is called, and the same for every build of it, so that what
    a killed build left is found.
    """

    folder: Path

    def _beside(self, what: str) -> Path:
        digest = hashlib.sha256(os.fsencode(self.folder.name)).hexdigest()[:12]
        return self.folder.parent / f".vlmc-{digest}.{what}"

    @property
    def lock(self) -> Path:
        """Held while the folder is written."""
        return self._beside("lock")

    @property
    def staging(self) -> Path:
        """Where the new build grows; after an exchange, the old build."""
        return self._beside("new")

    @property
    def former(self) -> Path:
        """Where the old build steps aside without an exchange."""
        return self._beside("old")

    @property
    def record(self) -> Path:
        """Where a new record of what was measured grows, before it takes the name of the old."""
        return self._beside("record")

    @property
    def journal(self) -> Path:
        """There while a swap without an exchange is under way."""
        return self._beside("journal")


def replace(places: Places) -> None:
    """Puts the complete `staging` in the place of `folder`; the old build, if any, is then at
    `staging` or at `former`. The caller holds the lock."""
    if not os.path.lexists(places.folder):
        os.rename(places.staging, places.folder)
    elif not exchange(places.staging, places.folder):
        _announce(places.journal)
        complete(places)
    sync_folder(places.folder.parent)


def recover(places: Places) -> None:
    """Completes a swap that was cut off, unless the process that makes it is alive."""
    if not places.journal.exists():
        return
    try:
        with locked(places.lock, places.folder):
            complete(places)
    except Busy:
        return


def complete(places: Places) -> None:
    """Carries out what the journal announces, from wherever it was cut off. The caller holds the
    lock."""
    if not places.journal.exists():
        return
    if places.staging.exists():
        _step_aside(places)
        os.rename(places.staging, places.folder)
        sync_folder(places.folder.parent)
    places.journal.unlink()
    sync_folder(places.folder.parent)


def _step_aside(places: Places) -> None:
    if not places.folder.exists():
        return
    if places.former.exists():
        raise EnvironmentFault(
            f"{places.folder} was made while a build of it was cut off; move it away to let the "
            "build be completed"
        )
    try:
        os.rename(places.folder, places.former)
    except OSError as error:
        if error.errno != errno.EXDEV:
            places.journal.unlink()
            raise
        # An overlay file system cannot rename a folder of a lower layer. The new build is whole
        # and the journal says so, so the old one may go file by file.
        shutil.rmtree(places.folder)


def _announce(journal: Path) -> None:
    draft = journal.with_suffix(".draft")
    with draft.open("wb") as file:
        file.write(b"swap\n")
        os.fsync(file.fileno())
    os.rename(draft, journal)
    sync_folder(journal.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two names atomically. False where this system or file system cannot; raises
    OSError where it can but did not."""
    names = (os.fsencode(one), os.fsencode(other))
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = library.renameat2(here, names[0], here, names[1], ctypes.c_uint(swap))
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, ctypes.c_uint(2))  # RENAME_SWAP
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
