"""What a manifest records of one file and of one artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def inside(path: str) -> str:
    """The path, unless it could lead out of the folder: a manifest names what may be deleted.
    Raises ValueError."""
    parts = path.split("/")
    if not path or "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise ValueError("not a relative path inside the build")
    return path


Inside = Annotated[str, AfterValidator(inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A typed, frozen piece of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class File(Record):
    """One file of the build."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]

    @staticmethod
    def of(data: bytes) -> File:
        """The record of a file that holds `data`."""
        return File(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class Status(Record):
    """What became of one artifact."""

    status: Literal["built", "deferred"]
    files: tuple[Inside, ...] = ()
    source: str | None = None
    """Where the values of weights come from."""
    inputs: Sha256 | None = None
    """The hash of everything that graphs were made from."""
    reason: str | None = None
    """Why it was deferred."""
    command: str | None = None
    """What makes it."""


def hashed(path: Path) -> File:
    """The record of a file on disk. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return File(sha256=digest.hexdigest(), size=file.tell())


Lying = tuple[int, ...]
"""How a file lies on disk: it can hold something else only if this has changed."""


def lying(path: Path) -> Lying:
    """Size, times of content and of inode, and inode. Whoever puts an older file in the place of
    another may keep its time, and not the rest. Raises OSError where there is none."""
    found = path.stat(follow_symlinks=False)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
