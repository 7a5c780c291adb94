"""Numbers that a caller gives, checked by their kind before they are compared."""

from __future__ import annotations

from numbers import Integral, Real

from vlmc.diagnostics.faults import UsageError


def check_whole(name: str, given: object, least: int) -> None:
    """Raises UsageError, which calls the number `name`, unless it is whole and `least` or more."""
    if isinstance(given, bool) or not isinstance(given, Integral) or int(given) < least:
        what = "a whole number, " * (not isinstance(given, int))
        raise UsageError(f"{name} {given!r}: {what}{least} or more is expected")


def is_number(given: object) -> bool:
    """Whether it is a real number, whole or not."""
    return not isinstance(given, bool) and isinstance(given, Real)
