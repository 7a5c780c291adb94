"""Archives that torch writes, written again: compressed, and with nothing of this machine in them.

Compiled code names the files that it was compiled from, in the texts of its errors. The names are
blanked where they stand, byte for byte, so that every offset in the library stays as it is.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch

EPOCH = (1980, 1, 1, 0, 0, 0)
SOURCES = (".cpp", ".h", ".o")
"""Parts of a compiled package that its loader does not need."""


def rewrite(path: Path, hide: Sequence[Path] = ()) -> None:
    """Writes the archive again in place; paths below the folders `hide` lose these."""
    fresh = path.with_suffix(".new")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(fresh, "w") as new:
        compiled = any(name.endswith(".so") for name in old.namelist())
        for name in old.namelist():
            if compiled and name.endswith(SOURCES):
                continue
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(entry, blanked(old.read(name), hide), compresslevel=6)
    os.replace(fresh, path)


def blanked(data: bytes, hide: Sequence[Path]) -> bytes:
    """`data`, of the same length, with slashes in place of the names of folders."""
    for folder in hide:
        name = os.fsencode(folder)
        data = re.sub(re.escape(name) + rb"(?=/)", b"/" * len(name), data)
    return data


def private_folders(cache: Path) -> list[Path]:
    """Folders whose names a compiled library holds: that in which it was made, and torch's own."""
    package = Path(torch.__file__).parent
    folders = {cache, cache.resolve(), package, package.resolve()}
    return sorted(folders, key=lambda folder: -len(os.fsencode(folder)))
