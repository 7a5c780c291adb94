"""The JSON files that come with weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from vlmc.diagnostics.faults import UsageError


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError where it is absent or something else."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds no JSON object")
    return cast("dict[str, Any]", value)
