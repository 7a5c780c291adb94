"""Progress on a terminal, for whatever takes over a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

Tell = Callable[..., None]


def _silent(stage: str, done: int = 0, total: int = 0) -> None:
    return None


def timed(tell: Tell) -> Tell:
    """`tell`, and a line on stderr for each stage that is over, with what it took."""
    begun: list[tuple[str, float]] = []

    def say(stage: str, done: int = 0, total: int = 0) -> None:
        now = time.perf_counter()
        if not begun or begun[-1][0] != stage:
            if begun:
                print(f"{now - begun[-1][1]:8.2f} s  {begun[-1][0]}", file=sys.stderr)
            begun[:] = [(stage, now)]
        tell(stage, done, total)

    return say


@contextmanager
def shown(title: str, *, quiet: bool) -> Generator[Tell]:
    """A function to tell stages to; a line that follows them where stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)

        def tell(stage: str, done: int = 0, total: int = 0) -> None:
            progress.update(
                task, description=f"{title}: {stage}", completed=done, total=total or None
            )

        yield tell
