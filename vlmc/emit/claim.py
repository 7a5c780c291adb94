"""Which folders a build may take: its own earlier builds, empty ones, and new ones."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.manifest import NAME, Manifest, UnreadableManifest


def located(folder: Path) -> Path:
    """The folder by its real path. Raises EnvironmentFault for a place that no build may take."""
    if "\0" in str(folder):
        raise EnvironmentFault("--output names no folder: it holds a null character")
    if folder.is_symlink():
        raise EnvironmentFault(
            f"{folder} is a symbolic link; name the folder that it leads to as --output"
        )
    real = Path(os.path.realpath(folder))
    for place, what in _kept():
        if real == place or real in place.parents:
            relation = "is" if real == place else "holds"
            raise EnvironmentFault(
                f"{folder} {relation} {what}; name a folder of its own as --output"
            )
    if real.exists() and not real.is_dir():
        raise EnvironmentFault(f"{folder} is a file, not a folder; choose another --output")
    if os.path.ismount(real):
        raise EnvironmentFault(f"{folder} is a mount point; name a folder inside it as --output")
    return real


def _kept() -> list[tuple[Path, str]]:
    places = [(Path("/"), "the root of the file system")]
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        places.append((Path(os.path.realpath(home)), "your home folder"))
    with suppress(FileNotFoundError):  # it may have been deleted under this process
        places.append((Path(os.path.realpath(Path.cwd())), "the folder that you are in"))
    return places


def earlier(folder: Path) -> Manifest | None:
    """The manifest of the build that stands at `folder`; None where there is nothing.

    Raises EnvironmentFault for a folder that holds something and is not vlmc's, OSError where it
    cannot be read.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        return Manifest.read(folder)
    except UnreadableManifest as error:
        what = f": {error}" if os.path.lexists(folder / NAME) else f": it has no {NAME}"
        raise EnvironmentFault(
            f"{folder} is not empty and not a build of vlmc, so it is left alone; choose another "
            f"--output, or remove it yourself{what}"
        ) from None
