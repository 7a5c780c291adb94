"""Records that bear the hash of what they say: a changed byte of one is found without another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = "sha256"
"""The last entry of a sealed record: the hash of its text without this entry."""


def sealed(document: Mapping[str, Any]) -> str:
    """The text of a record, with its seal."""
    bare = {name: value for name, value in document.items() if name != SEAL}
    seal = hashlib.sha256(_text(bare).encode()).hexdigest()
    return _text({**bare, SEAL: seal})


def intact(data: bytes) -> bool:
    """Whether `data` is what `sealed` gave, to the last byte."""
    try:
        document: Any = json.loads(data.decode())
        return isinstance(document, dict) and sealed(document).encode() == data  # pyright: ignore[reportUnknownArgumentType]
    except (ValueError, RecursionError):
        return False


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
