"""The store: finished graphs of earlier builds, and what was read off graphs for plans, by the hash
of all that they follow from.

It is a cache beside all builds and may vanish at any time: whatever is missing or damaged is made
again, and where the folder cannot be used, builds go on without it. It holds no weights of a build:
a file of an artifact that is one of them is kept by name alone and linked again. What is computed
from weights, such as quantised ones, is kept as it is, for builds of the same weights.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.emit.artifact import unheard
from vlmc.emit.carry import link
from vlmc.emit.entries import (
    ENTRY,
    KEY,
    NOTE,
    UNFINISHED,
    Entry,
    children,
    draft,
    entry_of,
    erase,
    remove,
    size_of,
)
from vlmc.emit.recipe import digest, versions
from vlmc.emit.record import File, hashed, inside

FOLDER = "VLMC_CACHE"
BYTES = "VLMC_CACHE_BYTES"
LIMIT = 10_000_000_000
LONGEST = 18
"""Digits of a number of bytes."""
ABANDONED = 86_400
"""Seconds after which a half-made entry is nobody's."""
IN_USE = 3_600
"""Seconds for which a folder that torch's compiler was given is taken to be in use."""
COMPILED = "what torch's compiler keeps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A folder of entries, `limit` bytes at most; those that were used least recently go first."""

    root: Path
    limit: int = LIMIT
    note: Callable[[str], None] = unheard
    """Told why something could not be kept or used."""

    @property
    def graphs(self) -> Path:
        """Where the entries lie, each in a folder named by its key."""
        return self.root / "graphs"

    @property
    def builds(self) -> Path:
        """Where notes on builds that stand lie, a file each."""
        return self.root / "builds"

    @property
    def unfinished(self) -> Path:
        """Where all that is written or removed lies meanwhile."""
        return self.root / "unfinished"

    def compiler(self) -> Path | None:
        """A folder for what torch's compiler keeps, a different one for each torch; None where it
        cannot be written."""
        place = self.root / "compiler" / digest(versions("torch"))
        try:
            place.mkdir(parents=True, exist_ok=True)
            os.utime(place)
        except OSError:
            return None
        return place

    def fetch(self, key: str, target: Path, weights: Mapping[str, Path]) -> bool:
        """Fills the empty folder `target` from the entry `key`; False where there is none that is
        whole. `weights` are the build's weight files by their names in it."""
        entry = self.graphs / key
        try:
            files = _files(entry)
            for name, kept in files.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(kept, str):
                    link(weights[kept], target / name)
                    continue
                shutil.copyfile(entry / "files" / name, target / name)
                if hashed(target / name) != kept:
                    raise ValueError(f"{name} is damaged")
            os.utime(entry / ENTRY)
            return True
        except FileNotFoundError as error:
            if entry.exists():
                self._drop(entry, f"{error.filename} is missing")
        except (KeyError, TypeError, ValueError) as error:
            self._drop(entry, str(error))
        except OSError as error:
            self.note(f"the cache at {self.root} cannot be read: {error.strerror or error}")
        for left in target.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return False

    def told(self, key: str) -> list[str]:
        """What was said when the entry `key` was made, a line each."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            document: Any = json.loads((self.graphs / key / ENTRY).read_text(encoding="utf-8"))
            return [str(line) for line in document["told"]]
        return []

    def keep(
        self,
        key: str,
        source: Path,
        weights: Mapping[str, Path],
        about: str,
        told: Sequence[str] = (),
    ) -> None:
        """Copies the finished folder `source` into the entry `key`, unless another process was
        first, with what was `told` as it was made. Files that are one of `weights` are kept by
        name."""
        try:
            self._keep(key, source, weights, about, told)
        except OSError as error:
            self.note(
                f"{about} was not cached: {self.root} cannot be written "
                f"({error.strerror or error}); set ${FOLDER} to a folder that can"
            )

    def _keep(
        self,
        key: str,
        source: Path,
        weights: Mapping[str, Path],
        about: str,
        told: Sequence[str],
    ) -> None:
        names = [path for path in sorted(source.rglob("*")) if path.is_file()]
        same = {path: _weights_of(path, weights) for path in names}
        size = sum(path.stat().st_size for path in names if same[path] is None)
        if size > self.limit or (self.graphs / key).exists():
            return
        self.graphs.mkdir(parents=True, exist_ok=True)
        half = draft(self.unfinished)
        try:
            files: dict[str, object] = {}
            for path in names:
                name = path.relative_to(source).as_posix()
                if same[path] is None:
                    place = half / "files" / name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)
                    files[name] = hashed(place).model_dump()
                else:
                    files[name] = same[path]
            document = {"schema": 1, "about": about, "bytes": size, "files": files, "told": [*told]}
            (half / ENTRY).write_text(json.dumps(document, indent=2), encoding="utf-8")
            try:
                os.rename(half, self.graphs / key)
            except OSError as error:  # another build was first with the same files
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        finally:
            shutil.rmtree(half, ignore_errors=True)
        self.trim()

    def entries(self) -> list[Entry]:
        """The artifacts that are there, and what torch's compiler keeps, least recently used
        first."""
        found: list[Entry] = []
        for folder in children(self.graphs, KEY):
            with suppress(OSError):  # another process may have taken it away
                found.append(entry_of(folder))
        for folder in children(self.root / "compiler", KEY):
            with suppress(OSError):
                found.append(Entry(folder, COMPILED, size_of(folder), folder.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def notes(self) -> list[Entry]:
        """The notes on builds, least recently written first."""
        found: list[Entry] = []
        for path in children(self.builds, NOTE):
            with suppress(OSError):
                found.append(Entry(path, "a build", path.stat().st_size, path.stat().st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def trim(self) -> None:
        """Removes what was used least recently, until the rest is within the limit, and what
        killed processes left."""
        entries = sorted((*self.entries(), *self.notes()), key=lambda entry: entry.used)
        over = sum(entry.size for entry in entries) - self.limit
        now = time.time()
        for entry in entries:
            if over <= 0:
                break
            if entry.about == COMPILED and entry.used > now - IN_USE:
                continue  # a compiler that writes there would fail
            remove(entry.folder, self.root)
            over -= entry.size
        for half in children(self.unfinished, UNFINISHED):
            with suppress(OSError):
                if half.stat().st_mtime < now - ABANDONED:
                    erase(half)

    def clear(self) -> tuple[int, int]:
        """Removes everything that is vlmc's; the number of artifacts and of all bytes that were
        there. Raises EnvironmentFault where the system refuses."""
        entries, notes = self.entries(), self.notes()
        halves = children(self.unfinished, UNFINISHED)
        try:
            for path in (*(entry.folder for entry in (*entries, *notes)), *halves):
                erase(path)
        except OSError as error:
            raise EnvironmentFault(
                f"{self.root} was not cleared: {error.strerror} (at {error.filename})"
            ) from None
        for place in ("graphs", "builds", "compiler", "unfinished"):
            with suppress(OSError):  # what is left in it is somebody else's
                (self.root / place).rmdir()
        return len(entries), sum(entry.size for entry in (*entries, *notes))

    def _drop(self, entry: Path, why: str) -> None:
        self.note(f"a cached artifact is made again: {why}")
        remove(entry, self.root)


def store(note: Callable[[str], None] = unheard) -> Store:
    """The store of this user: at $VLMC_CACHE, else where the system keeps caches.

    Raises UsageError where $VLMC_CACHE_BYTES is no number of bytes.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    root = Path(os.environ.get(FOLDER) or os.path.join(home, "vlmc"))
    text = os.environ.get(BYTES, "")
    if text and not (text.isdecimal() and len(text) <= LONGEST):
        raise UsageError(f"${BYTES} is {text[:40]!r}: a whole number of bytes is expected")
    return Store(root=root.absolute(), limit=int(text) if text else LIMIT, note=note)


def _files(entry: Path) -> dict[str, File | str]:
    """The files of an entry: its own by their records, the build's weights by their names."""
    document: Any = json.loads((entry / ENTRY).read_text(encoding="utf-8"))
    files: dict[str, Any] = document["files"]
    return {
        inside(name): found if isinstance(found, str) else File.model_validate(found)
        for name, found in files.items()
    }


def _weights_of(path: Path, weights: Mapping[str, Path]) -> str | None:
    """The name of the weight file that a file is, by a link or as a copy."""
    for name, other in weights.items():
        if path.samefile(other):
            return name
    size = path.stat().st_size
    for name, other in weights.items():
        if size == other.stat().st_size and hashed(path) == hashed(other):
            return name
    return None
