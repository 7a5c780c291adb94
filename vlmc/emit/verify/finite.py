"""Whose fault it is where an artifact does not compute what the model does."""

from __future__ import annotations

from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.manifest import Manifest
from vlmc.emit.verify.judge import Unsound
from vlmc.emit.writer import Verify
from vlmc.runtime.assemble import not_finite


def blaming_weights(judge: Verify) -> Verify:
    """What `judge` finds of a build; where it is unsound because weights hold NaN or infinity, the
    EnvironmentFault names those instead of an artifact. Weights are read for it only then."""

    def judged(folder: Path, manifest: Manifest, before: bytes | None) -> bytes | None:
        try:
            return judge(folder, manifest, before)
        except Unsound as unsound:
            bad = not_finite(folder / "weights")
            if not bad:
                raise
            parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in bad))
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise EnvironmentFault(
                f"weights hold NaN or infinity: {', '.join(bad[:3])}{more} (part: {parts}), "
                "so that no artifact can be compared; the file is damaged, or training diverged "
                "before it was saved: build from another copy"
            ) from unsound

    return judged
