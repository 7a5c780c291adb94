"""The valid names nearest to an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

NEAR = 0.6
"""Similarity from which a name may be what was meant."""


def ranked(name: str, valid: Iterable[str]) -> list[str]:
    """`valid`, most similar to `name` first; ties in alphabetical order."""
    return sorted(valid, key=lambda candidate: (-_similarity(name, candidate), candidate))


def listing(name: str, valid: Iterable[str], *, limit: int = 8) -> str:
    """`valid` as text for an `expected` line, nearest first and cut after `limit` names."""
    names = ranked(name, valid)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


def suggestion(name: str, valid: Iterable[str]) -> str | None:
    """The nearest valid name if it is near enough to be what was meant."""
    names = ranked(name, valid)
    return names[0] if names and _similarity(name, names[0]) >= NEAR else None


def near(name: str, valid: Iterable[str]) -> list[str]:
    """The valid names that are as near as the nearest, if that is near enough; shortest first."""
    names = ranked(name, valid)
    best = _similarity(name, names[0]) if names else 0.0
    if best < NEAR:
        return []
    equal = [candidate for candidate in names if _similarity(name, candidate) == best]
    return sorted(equal, key=len)


def _similarity(name: str, candidate: str) -> float:
    """Between 0 and 1. A name that is cut short (`perceiver`) is nearly as good as a whole one."""
    given, full = name.lower()[:80], candidate.lower()
    whole = SequenceMatcher(None, given, full).ratio()
    if len(given) < 4 or len(given) >= len(full):
        return whole
    return max(whole, 0.9 * SequenceMatcher(None, given, full[: len(given)]).ratio())
