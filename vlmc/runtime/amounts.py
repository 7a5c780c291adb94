"""Numbers that a caller gives, checked by their kind before they are compared."""

from __future__ import annotations

import os
from numbers import Integral, Real
from typing import cast

from vlmc.diagnostics.faults import UsageError

MANY_THREADS = 64
"""Threads that any machine may be asked for; many more than its processors would fill its memory
and stand in each other's way."""


def check_whole(name: str, given: object, least: int) -> None:
    """Raises UsageError, which calls the number `name`, unless it is whole and `least` or more."""
    if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < least:
        what = "a whole number, " * (not isinstance(given, int))
        raise UsageError(f"{name} {given!r}: {what}{least} or more is expected")


def check_threads(given: object) -> None:
    """Raises UsageError unless it is a number of threads in which this machine can compute."""
    check_whole("--threads", given, 1)
    here = os.cpu_count() or 1
    most = max(MANY_THREADS, here)
    if cast("int", given) > most:
        raise UsageError(
            f"--threads {given}: 1 to {most} are expected; this machine computes in {here} at once"
        )


def is_number(given: object) -> bool:
    """Whether it is a real number, whole or not."""
    return not isinstance(given, bool) and isinstance(given, Real)
