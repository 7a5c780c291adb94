"""Divisors that a help proposes."""

from __future__ import annotations


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is closest to `wanted` (the smaller of two equally close)."""
    divisors = [one for one in range(1, min(number, 4096) + 1) if number % one == 0]
    return min(divisors, key=lambda one: (abs(one - wanted), one))
