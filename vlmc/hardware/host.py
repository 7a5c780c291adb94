"""What the present machine is, and what it has left: memory and disk, asked before either is
filled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def free_memory() -> int:
    """Bytes that a process may still take, by the system and by the control group it runs in."""
    bounds = [
        _left(Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        _left(Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ]
    return min(_available(), *(bound for bound in bounds if bound is not None))


def _left(group: Path, limit: str, used: str) -> int | None:
    """Bytes that a control group may still take; None where it has no limit. What the system holds
    of files counts as free: it is given up when it is wanted."""
    most, taken = _number(group / limit), _number(group / used)
    if most is None or taken is None:
        return None
    return max(0, most - taken + _cached(group / "memory.stat"))


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cached(path: Path) -> int:
    try:
        rows = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
        return int(rows.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such control group, or "max"
        return None


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of `folder`, or of the nearest folder above it that exists."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0
