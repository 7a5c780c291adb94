"""Whether the committed outputs of a build are what a build of today would write."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vlmc.emit import catalog
from vlmc.emit.artifact import Build, Deferred, Graphs
from vlmc.emit.faults import explained
from vlmc.emit.manifest import NAME, Manifest, UnreadableManifest
from vlmc.emit.options import Options, settle
from vlmc.emit.record import File, Status

State = Literal["stale", "missing", "extra"]
"""stale: it differs; missing: it is not there; extra: no build of today writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """One file that is not as it should be, and the command that refreshes it."""

    path: Path
    state: State
    command: str

    def __str__(self) -> str:
        return f"{self.path} is {self.state}; refresh it with `{self.command}`"


def compare(build: Build, command: str) -> list[Stale]:
    """What differs between the folder of `build` and `build` made in memory.

    Files that no build wrote are not looked at; weights are not committed, so they only have to be
    where the manifest says.

    Raises EnvironmentFault where a file is there but cannot be read.
    """
    folder = build.folder
    try:
        old = Manifest.read(folder)
    except UnreadableManifest:
        old = None
    if old is not None:  # how graphs are made is not a matter of texts
        made = Options(**old.options)
        build = replace(build, options=settle(None, made, build.spec.artifacts, valued=True))
    fresh = {text.path: text.data for text in catalog.texts(build)}
    files = {path: File.of(data) for path, data in fresh.items()}
    statuses = {path: Status(status="built", files=(path,)) for path in fresh}
    for artifact in catalog.uncommitted(build):
        status = None if old is None else old.artifacts.get(artifact.path)
        off = artifact.put_off(statuses) if isinstance(artifact, Graphs) else None
        if off is not None:
            statuses[artifact.path] = off
        elif old is not None and status is not None and status.status == "built":
            statuses[artifact.path] = status
            files |= {name: old.files[name] for name in status.files if name in old.files}
        elif isinstance(artifact, Deferred):
            statuses[artifact.path] = artifact.status
        elif status is not None:
            statuses[artifact.path] = status
    fresh[NAME] = Manifest.of(build, files, statuses).text().encode()
    with explained(folder, "read"):
        states: dict[str, State | None] = {
            path: _state(folder / path, data) for path, data in fresh.items()
        }
        for name in files:
            if name not in fresh and not (folder / name).is_file():
                states[name] = "missing"
        for name in () if old is None else old.files:
            if name not in fresh and name not in files and (folder / name).exists():
                states[name] = "extra"
    return [
        Stale(path=folder / path, state=state, command=command)
        for path, state in states.items()
        if state is not None
    ]


def _state(path: Path, data: bytes) -> State | None:
    try:
        return None if path.read_bytes() == data else "stale"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except IsADirectoryError:
        return "stale"
