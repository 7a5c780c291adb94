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
