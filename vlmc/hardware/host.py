"""What the present machine has left: memory and disk, asked before either is filled."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def free_memory() -> int:
    """Bytes that a process may still take, by the system and by the control group it runs in."""
    bounds = [_available()]
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        most, taken = _number(f"{folder}/{limit}"), _number(f"{folder}/{used}")
        if most is not None and taken is not None:
            bounds.append(max(0, most - taken + _cached(f"{folder}/memory.stat")))
    return min(bounds)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cached(path: str) -> int:
    """Bytes that the system holds of files and gives up when they are wanted."""
    try:
        rows = dict(line.split() for line in Path(path).read_text(encoding="ascii").splitlines())
        return int(rows.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such control group, or "max"
        return None


def free_disk(folder: Path) -> int:
    """Bytes free on the disk of `folder`, or of the nearest folder above it that exists."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0
