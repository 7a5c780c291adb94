"""What an exported program on disk may hold: data alone, nothing that runs when it is read.

torch.export.load unpickles weights, constants, custom objects and example inputs, and evaluates the
expressions of symbolic sizes. A build writes none of the former and only sums and products.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

EXAMPLE = "data/sample_inputs/model.pt"
TABLES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
PROGRAM = "models/model.json"
PARTS = {
    *TABLES,
    EXAMPLE,
    PROGRAM,
    "archive_format",
    "archive_version",
    ".data/version",
    ".data/serialization_id",
    "byteorder",
}
"""Entries of an archive, below the one folder that all of them share."""

_WEIGHTS = re.compile(r"data/weights/weight_\d+")
"""One file for each number format: tensors without a byte of their own share it."""

_EXPRESSION = re.compile(r"([-\s'(),=+*/<>]|\b([su]?\d+|[A-Z][A-Za-z]*|positive|integer)\b)*")
"""Numbers, symbols such as s12, and constructors such as Mul. No function has such a name, and
without escapes and attributes none can be reached."""


def check_plain(path: Path) -> None:
    """Raises ValueError, with the reason, for an archive that no build of ours wrote, and OSError
    where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = names[0].partition("/")[0] + "/" if names else ""
            found = [name.removeprefix(root) for name in names]
            known = {name for name in found if name in PARTS or _WEIGHTS.fullmatch(name)}
            foreign = sorted({name for name in found if name not in known or found.count(name) > 1})
            if foreign:
                raise ValueError(f"it holds {foreign[0]}, which no build writes")
            if archive.getinfo(root + EXAMPLE).file_size:
                raise ValueError("it holds pickled example inputs")
            weights, constants = (_table(archive.read(root + name)) for name in TABLES)
            if constants or any(one.get("use_pickle") is not False for one in weights):
                raise ValueError("it holds pickled values")
            for text in _expressions(json.loads(archive.read(root + PROGRAM))):
                if _EXPRESSION.fullmatch(text) is None:
                    raise ValueError(f"a size in it is {text[:40]!r}")
    except (zipfile.BadZipFile, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is damaged: {error}") from None


def _table(text: bytes) -> list[dict[str, Any]]:
    return list(json.loads(text)["config"].values())


def _expressions(found: object) -> Iterator[str]:
    """Every text that is evaluated."""
    waiting = [found]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            for key, value in cast("dict[str, object]", one).items():
                if key == "expr_str" and isinstance(value, str):
                    yield value
                waiting.append(value)
        elif isinstance(one, list):
            waiting += cast("list[object]", one)
