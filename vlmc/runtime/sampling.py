"""The next token: the likeliest, or one that is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.amounts import check_whole, is_number
from vlmc.runtime.finite import overflowed

MAX_TEMPERATURE = 1e4
"""Far above it every token is as likely as any other, in the numbers that are computed with."""

Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen: greedily at temperature 0, else drawn from the softmax of
    logits / temperature, cut to the `top_k` likeliest and then to the fewest tokens whose
    probabilities reach `top_p` (Holtzman et al., 2020)."""

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise UsageError(
                f"--temperature {self.temperature!r}: 0 (greedy) to {MAX_TEMPERATURE:,.0f} "
                "is expected"
            )
        if self.top_p is not None and not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise UsageError(f"--top-p {self.top_p!r}: more than 0 and at most 1 is expected")
        if self.top_k is not None:
            check_whole("--top-k", self.top_k, 1)
        check_whole("--seed", self.seed, 0)
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise UsageError(
                "--top-p and --top-k mean nothing at temperature 0, which always takes the "
                "likeliest token; give --temperature 1"
            )

    def draws(self, row: int = 0) -> np.random.Generator:
        """The draws of a row of a batch: the same alone and among others."""
        return np.random.default_rng((self.seed, row))


GREEDY = Sampling()


def choose(logits: Numbers, sampling: Sampling, draw: np.random.Generator) -> int:
    """The next token, from logits [vocabulary].

    Raises EnvironmentFault where they are not finite.
    """
    likeliest = int(logits.argmax())
    if not np.isfinite(logits[likeliest]):
        raise overflowed("its logits are")
    if sampling.temperature == 0:
        return likeliest
    shifted = logits.astype(np.float64) - float(logits[likeliest])
    with np.errstate(over="ignore"):  # to -inf, which is right
        shifted /= sampling.temperature
    if sampling.top_k is not None and sampling.top_k < shifted.size:
        shifted = _of_the_likeliest(shifted, sampling.top_k)
    probabilities = softmax(shifted)
    if sampling.top_p is not None:
        probabilities = nucleus(probabilities, sampling.top_p)
    sums: Numbers = probabilities.cumsum()
    point = draw.random() * float(sums[-1])
    drawn = int(np.searchsorted(sums, point, side="right"))
    # A draw that rounding puts at the very end belongs to the last token that can be drawn.
    return min(drawn, int(probabilities.nonzero()[0][-1]))


def softmax(logits: Numbers) -> Numbers:
    """Probabilities [..., classes] of finite or -inf logits [..., classes], in float64."""
    logits = logits.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def nucleus(probabilities: Numbers, top_p: float) -> Numbers:
    """`probabilities` [vocabulary] with all but the fewest that reach `top_p` set to 0; the
    likeliest always stays."""
    order = np.argsort(-probabilities, kind="stable")
    ordered = probabilities[order]
    # A token goes if those before it are enough already.
    before = ordered.cumsum() - ordered
    kept = np.zeros_like(probabilities)
    kept[order] = np.where(before >= top_p, 0.0, ordered)
    return kept


def _of_the_likeliest(logits: Numbers, count: int) -> Numbers:
    """`logits` with all but the `count` largest at -inf; of equal ones the first stay."""
    least: float = np.partition(logits, -count)[-count]  # pyright: ignore
    kept: NDArray[np.bool_] = logits > least
    equal: NDArray[np.intp] = np.nonzero(logits == least)[0]
    kept[equal[: count - int(kept.sum())]] = True
    return np.where(kept, logits, -np.inf)
