"""Large numbers for people."""

from __future__ import annotations


def count(number: int) -> str:
    """A count in at most four digits: 998, 12.3K, 435M, 7.06B."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            value = number / size
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f}{unit}"
    return str(number)


def volume(size: int) -> str:
    """Bytes with one decimal: 28.3 GB, 0.4 MB, 12 bytes."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit / 10:
            return f"{size / unit:,.1f} {name}"
    return f"{size:,} bytes"
