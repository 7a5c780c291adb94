"""Whose fault it is where a model's numbers are not finite: its weights', where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlmc.diagnostics.faults import EnvironmentFault
from vlmc.runtime.regions import stored_values

DAMAGED = "the file is damaged, or training diverged before it was saved"


def overflowed(what: str) -> EnvironmentFault:
    """Of numbers that a model gives: `what` says which, and ends in a verb."""
    return EnvironmentFault(
        f"the model's numbers overflowed: {what} not finite; where it computes in 16 bits, "
        f"--dtype fp32 has more room"
    )


def not_finite(folder: Path) -> list[str]:
    """Names of the tensors in a folder's safetensors files that hold NaN or infinity."""
    return [
        name
        for path in sorted(folder.glob("*.safetensors"))
        for name, values in stored_values(path).items()
        if not np.isfinite(values).all()
    ]


def named_tensors(names: Sequence[str]) -> str:
    """The first of them, how many more there are, and the parts that they belong to."""
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} (part: {parts})"
