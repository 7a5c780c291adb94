"""From what the system refuses to a sentence for its user."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault


class NotHere(EnvironmentFault):
    """What this machine lacks for an artifact, and another may have."""


_SENTENCES = {
    errno.ENOSPC: "the disk is full; free some space or choose another --output",
    errno.EDQUOT: "your quota on this disk is used up; free some space or choose another --output",
    errno.EFBIG: "a file would be larger than this system allows (see `ulimit -f`)",
    errno.EROFS: "the file system is read-only; choose another --output",
    errno.EACCES: "this user may not",
    errno.EPERM: "the system forbids it",
    errno.ENAMETOOLONG: "the name is too long for this file system; choose a shorter --output",
    errno.EEXIST: "a file stands where a folder is needed; choose another --output",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another --output",
    errno.EBUSY: "it is in use as a mount point; name a folder inside it as --output",
    errno.ENOLCK: "this file system cannot lock files; choose another --output",
    errno.EIO: "the disk reports an error",
}


@contextmanager
def explained(folder: Path, done: str = "built") -> Generator[None]:
    """Turns an OSError while `folder` is built into an EnvironmentFault with a clear sentence."""
    try:
        yield
    except OSError as error:
        what = _SENTENCES.get(error.errno or 0, error.strerror or str(error))
        place = f" (at {error.filename})" if error.filename not in (None, str(folder)) else ""
        raise EnvironmentFault(f"{folder} was not {done}: {what}{place}") from error
