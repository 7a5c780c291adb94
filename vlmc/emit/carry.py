"""Carrying over what a build did not write: notes, runs and whatever people keep in its folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy on file systems without hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def carry(source: Path, target: Path, owned: frozenset[str], *, strict: bool) -> None:
    """Links everything in `source` into `target` but what is `owned`, by paths relative to it.

    Raises EnvironmentFault at another mounted file system and, where `strict`, at a name that
    `target` has already; otherwise what `target` has stays. Raises OSError where something can be
    neither linked nor copied.
    """
    folders = {parent.as_posix() for name in owned for parent in Path(name).parents}
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(source / below) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = f"{below}/{entry.name}" if below else entry.name
            if name in owned:
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            taken = os.path.lexists(target / name) and not (is_folder and _is_folder(target / name))
            if taken and strict:
                raise EnvironmentFault(
                    f"{source / name} is not vlmc's, and the build needs its name; move it away"
                )
            if is_folder and not taken:
                if os.path.ismount(source / name):
                    raise EnvironmentFault(f"{source / name} is a mount point; unmount it first")
                if name not in folders and not (target / name).exists():
                    (target / name).mkdir(parents=True)
                    shutil.copystat(source / name, target / name)
                pending.append(name)
            elif not is_folder and not taken:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                link(source / name, target / name)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
