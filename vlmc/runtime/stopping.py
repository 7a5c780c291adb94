"""Where an answer ends by its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from vlmc.diagnostics.faults import UsageError


def stop_strings(given: object) -> tuple[str, ...]:
    """One stop string or several. Raises UsageError for anything else, and for an empty one."""
    if given is None:
        return ()
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list | tuple):
        raise UsageError(f"stop: a text or a list of texts is expected, not {given!r}")
    for one in cast("Sequence[object]", listed):
        if not isinstance(one, str) or not one:
            raise UsageError(f"stop: {one!r} never ends an answer; a text of one character or more")
    return tuple(cast("Sequence[str]", listed))


class StopWatch:
    """Passes a text on, piece by piece, up to the first stop string, of which nothing gets out.

    What could be the beginning of a stop string is held back until it is known not to be.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What of the text is certain after `piece`."""
        if self.stopped:
            return ""
        self.held += piece
        found = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            said, self.held = self.held[: min(found)], ""
            return said
        keep = max((_begun(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        said, self.held = self.held[:cut], self.held[cut:]
        return said

    def finish(self) -> str:
        """What was held back, once no more text comes."""
        said, self.held = self.held, ""
        return said


def _begun(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
