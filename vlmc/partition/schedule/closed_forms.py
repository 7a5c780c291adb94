"""What is known of a schedule unsimulated, where stages take the same time and messages none."""

from __future__ import annotations

from vlmc.partition.plan import Schedule


def bubble_share(
    schedule: Schedule, ranks: int, micro_batches: int, chunks: int = 1
) -> float | None:
    """Share of the whole time in which a rank waits; None where no closed form holds.

    (p - 1) / (v m + p - 1) for p ranks, m micro-batches and v chunks (Narayanan et al., 2021,
    section 2.2, whose (p - 1) / (v m) is a share of the time of work); with several chunks only
    where p divides m. zero_bubble with one chunk: (p - 1) / (3 m + p - 1) where forward pass, input
    gradient and weight gradient take the same time (Qi et al., 2024, section 2.3) and m >= p.
    """
    if schedule == "zero_bubble":
        if chunks > 1 or micro_batches < ranks:
            return None
        return (ranks - 1) / (3 * micro_batches + ranks - 1)
    if chunks > 1 and micro_batches % ranks:
        return None
    return (ranks - 1) / (chunks * micro_batches + ranks - 1)


def most_held(
    schedule: Schedule, rank: int, ranks: int, micro_batches: int, chunks: int = 1
) -> int | None:
    """The most that a rank holds at one time, in micro-batches of one of its stages (a chunk is
    1 / v of its layers); None where no closed form holds.

    gpipe: m. 1f1b: min(m, p - rank). interleaved: min(v m, (v - 1) p + 2 (p - 1 - rank) + 1), with
    several chunks only where p divides m: on the first rank v p (1 + (p - 1) / (p v)) (Korthikanti
    et al., 2022, section 4.2.3). zero_bubble with one chunk: min(m, p), as the weight gradients of
    later ranks come later.
    """
    if schedule == "gpipe":
        return micro_batches
    if schedule == "1f1b":
        return min(micro_batches, ranks - rank)
    if schedule == "zero_bubble":
        return min(micro_batches, ranks) if chunks == 1 else None
    if chunks > 1 and micro_batches % ranks:
        return None
    early = (chunks - 1) * ranks + 2 * (ranks - 1 - rank)
    return min(chunks * micro_batches, early + 1)


def most_put_off(rank: int, micro_batches: int) -> int:
    """The most micro-batches of zero_bubble with one chunk whose gradients of inputs a rank has and
    whose gradients of weights it has yet to compute: of its p, the p - rank - 1 that are still on
    their way forward are none of them. The first rank computes both at once."""
    return min(micro_batches, rank + 1) if rank else 0
