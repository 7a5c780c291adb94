"""Whose fault it is where an artifact does not compute what the model does."""

from __future__ import annotations

from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.manifest import Manifest
from vlmc.emit.verify.judge import Unsound
from vlmc.emit.writer import Verify
from vlmc.runtime.finite import DAMAGED, named_tensors, not_finite


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
            raise EnvironmentFault(
                f"weights hold NaN or infinity: {named_tensors(bad)}, so that no artifact can be "
                f"compared; {DAMAGED}: build from another copy"
            ) from unsound

    return judged
