"""How long work takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count, islice
from statistics import median

import torch

REPEATS = 7
LONG_REPEATS = 3
"""Of work that takes over a quarter of LONGEST_SECONDS."""
LEAST_SECONDS = 2e-3
"""Of one repetition: shorter work is done several times in it."""
LONGEST_SECONDS = 0.2
"""Of one repetition: sizes above the first that would take longer are left out."""


def seconds(work: Callable[[int], object], device: str, held: int = 1) -> float:
    """The median time of `work`, which is told how often it ran before: what else the machine does
    is in the time of a step, too. The last `held` results stay alive, as what a backward pass needs
    does, so that outputs lie in memory that was used a while ago."""
    kept: deque[object] = deque(maxlen=held)
    turns = count()
    for turn in islice(turns, held + 1):  # until memory comes from what was freed
        kept.append(work(turn))
    once = _timed(work, islice(turns, 1), kept, device)
    rounds = max(1, int(LEAST_SECONDS / max(once, 1e-9)))
    repeats = REPEATS if once < LONGEST_SECONDS / 4 else LONG_REPEATS
    # Turns go on from one repetition to the next, or only the first operands would ever be used.
    return median(
        _timed(work, islice(turns, rounds), kept, device) / rounds for _ in range(repeats)
    )


def _timed(
    work: Callable[[int], object], turns: Iterable[int], kept: deque[object], device: str
) -> float:
    """Of all turns together."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for turn in turns:
        kept.append(work(turn))
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun
