"""What the system says of the processor."""

from __future__ import annotations

from pathlib import Path


def processor_says(*keys: str, path: Path = Path("/proc/cpuinfo")) -> str | None:
    """What Linux says in `path` of the first processor under the first of `keys` that stands there;
    None where it says nothing."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys:
            return value.strip()
    return None
