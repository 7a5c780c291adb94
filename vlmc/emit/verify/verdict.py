"""Whether a build still is what it was when it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlmc.emit.artifact import Build
from vlmc.emit.faults import explained
from vlmc.emit.manifest import MEASURED, Manifest
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
    so that its artifacts can be executed. Writes verification.json. Raises EnvironmentFault where
    an artifact cannot be executed, or the file not be written."""
    folder = manifest.folder
    assert folder is not None
    faults = manifest.verify(folder)
    engines: Mapping[str, Verified] = {}
    if not faults:
        found = verify(plan(), folder, manifest, {})
        engines = found.engines
        if engines:
            with explained(folder / MEASURED, "written"):
                (folder / MEASURED).write_text(found.text(), encoding="utf-8")
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
