"""What lies in the store, found by the names that vlmc gives and no others: the folder may be
anybody's choice, and hold what is not vlmc's."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENTRY = "entry.json"
UNREADABLE = "unreadable"
"""What is known of an entry whose own words are damaged."""
KEY = re.compile("[0-9a-f]{64}")
NOTE = re.compile(r"[0-9a-f]{64}\.json")
UNFINISHED = re.compile("vlmc-.*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact in the store."""

    folder: Path
    about: str
    size: int
    used: float
    """When it was used last, in seconds since 1970."""


def entry_of(folder: Path) -> Entry:
    """What an entry says of itself; the sizes of its files where it says nothing that can be read.
    Raises OSError where it is gone."""
    try:
        document: Any = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        used = (folder / ENTRY).stat().st_mtime
        return Entry(folder, str(document["about"]), int(document["bytes"]), used)
    except (OSError, ValueError, KeyError, TypeError):
        return Entry(folder, UNREADABLE, size_of(folder), folder.stat().st_mtime)


def size_of(folder: Path) -> int:
    """Bytes of all files in it. Raises OSError where one is gone meanwhile."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def children(folder: Path, named: re.Pattern[str]) -> list[Path]:
    """What in a folder bears such a name."""
    with suppress(OSError):
        return sorted(path for path in folder.iterdir() if named.fullmatch(path.name))
    return []


def draft(unfinished: Path) -> Path:
    """A new folder for what is not finished."""
    unfinished.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="vlmc-", dir=unfinished))


def remove(entry: Path, root: Path) -> None:
    """Takes an entry away in one step, so that nobody finds half of it."""
    with suppress(OSError):
        gone = draft(root / "unfinished")
        os.rename(entry, gone / "entry")
        shutil.rmtree(gone, ignore_errors=True)


def erase(path: Path) -> None:
    """Removes a file or a folder, unless another process was first. Raises OSError."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
