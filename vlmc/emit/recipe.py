"""Hashes of what an artifact follows from: the compiler's own source, the design, the options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vlmc.emit.record import Lying, lying

PACKAGE = Path(__file__).parents[1]
SUFFIXES = (".py", ".cpp", ".h", ".yaml", ".json", ".md", ".txt")

GRAPH_SOURCES = ("builder", "capture", "components", "ir", "passes", "version.py")
"""The parts of vlmc that every graph goes through, relative to the package."""


OF_DESIGN = {"follows_from": "design"}
"""Metadata of a safetensors file whose numbers are the same whatever the weights are."""


def digest(*parts: object) -> str:
    """The hash of some values, which are distinguished by how JSON or `repr` writes them."""
    text = json.dumps([part if isinstance(part, str) else repr(part) for part in parts])
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


@cache
def source(*below: str) -> str:
    """The hash of vlmc's own source: of the files and folders `below` its package, or of all."""
    whole = hashlib.sha256()
    for path in sorted(_files(below or (".",))):
        data = path.read_bytes()
        whole.update(f"{path.relative_to(PACKAGE).as_posix()} {len(data)}\n".encode())
        whole.update(data)
    return whole.hexdigest()


def _files(below: Iterable[str]) -> Iterable[Path]:
    for name in below:
        place = PACKAGE / name
        if place.is_file():
            yield place
        else:
            yield from (p for p in place.rglob("*") if p.suffix in SUFFIXES and p.is_file())


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages; those that are not installed are left out."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def values_in(checkpoint: Path) -> Path:
    """The folder that holds the values of a checkpoint, and the words beside them: of a build of
    ours that is weights/, of any other the folder itself."""
    built = (checkpoint / "manifest.json").is_file()
    return checkpoint / "weights" if built else checkpoint


def stats(folder: Path) -> Mapping[str, Lying]:
    """How every file lies in a folder that values are read from, its links followed."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.as_posix(): lying(path.resolve()) for path in paths if path.is_file()}
