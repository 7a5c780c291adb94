"""Where torch's compiler keeps what it makes: in the store, which bounds and clears it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from vlmc.emit.store import Store

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def compiling_in(kept: Store) -> Generator[None]:
    """Within, torch's compiler keeps in the store what it makes here and in processes that are
    started, unless the user has said where, or the store cannot be written."""
    given = os.environ.get(VARIABLE)
    place = kept.compiler() if given is None or _usual(Path(given)) else None
    if place is None:
        yield
        return
    os.environ[VARIABLE] = str(place)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if given is not None:
            os.environ[VARIABLE] = given


def _usual(folder: Path) -> bool:
    """Whether torch itself chose the folder: it writes its choice into the variable."""
    named = folder.name.startswith("torchinductor_")
    return named and folder.parent == Path(tempfile.gettempdir()).absolute()
