"""One build of a folder at a time."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault


class Busy(EnvironmentFault):
    """Another process is writing the folder."""


@contextmanager
def locked(path: Path, folder: Path) -> Generator[None]:
    """Holds the lock file `path` while `folder` is written.

    The lock is the kernel's (flock), so it ends with its process, however that ends; the file only
    says who holds it. Raises Busy where another process does, OSError where no file can be made.
    """
    descriptor = _acquire(path, folder)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # Removed while it is held: whoever opened it meanwhile sees that it is no longer at `path`.
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, folder: Path) -> int:
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise Busy(
                f"{folder} is being built by process {holder}; wait for it, or stop it"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        if _is(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """The process id in a lock file; its holder may be about to write it."""
    for _ in range(20):
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        if text.isdigit():
            return text
        time.sleep(0.01)
    return "(unknown)"
