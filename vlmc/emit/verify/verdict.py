"""Whether a build still is what it was when it was made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit import swap
from vlmc.emit.artifact import Build
from vlmc.emit.lock import locked
from vlmc.emit.manifest import MEASURED, NAME, Manifest
from vlmc.emit.staging import read, write
from vlmc.emit.verify.judge import verify
from vlmc.emit.verify.record import Verified


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found of a build folder."""

    files: int
    faults: tuple[str, ...]
    """What of its files is not as it was built."""
    deferred: Mapping[str, str]
    """The artifacts that it does not have, each with the reason."""
    engines: Mapping[str, Verified]
    """What was measured, by engine; nothing where files are at fault."""

    @property
    def sound(self) -> bool:
        """Whether everything is as it should be."""
        return not self.faults and all(found.sound for found in self.engines.values())

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON."""
        measured = {name: found.model_dump(mode="json") for name, found in self.engines.items()}
        return {
            "sound": self.sound,
            "files": self.files,
            "faults": list(self.faults),
            "deferred": dict(self.deferred),
            "engines": measured,
        }


def examine(manifest: Manifest, plan: Callable[[], Build]) -> Verdict:
    """The verdict on the folder of `manifest`; `plan` gives its build where its files are whole,
    so that its artifacts can be executed. Writes verification.json; where it cannot, the verdict
    stands and the build's `note` is told. Raises EnvironmentFault where an artifact cannot be
    executed."""
    folder = manifest.folder
    assert folder is not None
    faults = manifest.verify(folder)
    engines: Mapping[str, Verified] = {}
    if not faults:
        build, standing = plan(), read(folder / NAME)
        found = verify(build, folder, manifest, {})
        engines = found.engines
        if engines:
            try:
                _record(folder, standing, found.text())
            except (OSError, EnvironmentFault) as error:
                said = getattr(error, "strerror", None) or str(error)
                build.note(f"{folder / MEASURED} was not written: {said}")
    return Verdict(
        files=len(manifest.files) + 1,
        faults=tuple(faults),
        deferred={
            path: status.reason or ""
            for path, status in manifest.artifacts.items()
            if status.status == "deferred"
        },
        engines=engines,
    )


def _record(folder: Path, standing: bytes | None, text: str) -> None:
    """Puts what was measured in the place of what was measured before, in one step. The build is
    the one whose manifest is `standing`.
    Raises EnvironmentFault where another build has the folder now, OSError where the system
    refuses; the record is then as it was."""
    places = swap.Places(Path(os.path.realpath(folder)))
    with locked(places.lock, folder):
        if read(places.folder / NAME) != standing:
            raise EnvironmentFault("the folder was built again while this was measured")
        places.record.unlink(missing_ok=True)
        try:
            write(places.record, text.encode())
            os.replace(places.record, places.folder / MEASURED)
        finally:
            places.record.unlink(missing_ok=True)
        swap.sync_folder(places.folder)
