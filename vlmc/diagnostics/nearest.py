"""The valid names nearest to an unknown one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


def ranked(name: str, valid: Iterable[str]) -> list[str]:
    """`valid`, most similar to `name` first; ties in alphabetical order."""

    def distance(candidate: str) -> tuple[float, str]:
        matcher = SequenceMatcher(None, name.lower()[:80], candidate.lower())
        return (-matcher.ratio(), candidate)

    return sorted(valid, key=distance)


def listing(name: str, valid: Iterable[str], *, limit: int = 8) -> str:
    """`valid` as text for an `expected` line, nearest first and cut after `limit` names."""
    names = ranked(name, valid)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


def suggestion(name: str, valid: Iterable[str]) -> str | None:
    """The nearest valid name if it is near enough to be what was meant."""
    names = ranked(name, valid)
    if not names:
        return None
    close = SequenceMatcher(None, name.lower()[:80], names[0].lower()).ratio() >= 0.6
    return names[0] if close else None
