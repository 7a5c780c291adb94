"""Autoregressive generation, greedy or sampled, with a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmc.diagnostics import EnvironmentFault, UsageError

MAX_TEMPERATURE = 1e4
"""Far above it every token is as likely as any other, in the numbers that are computed with."""


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
        if not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise UsageError(
                f"--temperature {self.temperature}: 0 (greedy) to {MAX_TEMPERATURE:,.0f} "
                "is expected"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"--top-p {self.top_p}: more than 0 and at most 1 is expected")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"--top-k {self.top_k}: 1 or more is expected")
        if self.temperature == 0 and (self.top_p is not None or self.top_k is not None):
            raise UsageError(
                "--top-p and --top-k mean nothing at temperature 0, which always takes the "
                "likeliest token; give --temperature 1"
            )


@torch.inference_mode()
def generate(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stops: frozenset[int] = frozenset(),
    start_token: int | None = None,
) -> Iterator[int]:
    """The tokens of an answer one by one, the one that stops it included; at most `max_new_tokens`.

    `inputs` are the model's own for one sequence: input_ids [1, text] and pixel_values or others.
    An encoder-decoder has a `start_token`, with which its decoder begins. Raises EnvironmentFault
    where the numbers overflow.
    """
    draw = torch.Generator().manual_seed(sampling.seed)
    network = cast("Any", model)
    cache = network.new_cache()
    device = inputs["input_ids"].device
    step = dict(inputs)
    name = "input_ids"
    if start_token is not None:
        name = "decoder_input_ids"
        step[name] = torch.tensor([[start_token]], device=device)
    for _ in range(max_new_tokens):
        logits: Tensor = network(**step, cache=cache).logits
        token = choose(logits[0, -1].float().cpu(), sampling, draw)
        yield token
        if token in stops:
            return
        step = {name: torch.tensor([[token]], device=device)}


def choose(logits: Tensor, sampling: Sampling, draw: torch.Generator) -> int:
    """The next token, from logits [vocabulary] in float32 on the host."""
    if not bool(torch.isfinite(logits.max())):
        raise EnvironmentFault(
            "the model's numbers overflowed: its logits are not finite; try --dtype fp32"
        )
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.numel():
        rest = logits.sort(descending=True, stable=True).indices[sampling.top_k :]
        logits = logits.index_fill(0, rest, float("-inf"))
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p is not None:
        probabilities = nucleus(probabilities, sampling.top_p)
    return int(torch.multinomial(probabilities, 1, generator=draw))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """`probabilities` [vocabulary] with all but the fewest that reach `top_p` set to 0; the
    likeliest always stays."""
    ordered, order = probabilities.sort(descending=True, stable=True)
    # A token goes if those before it are enough already.
    ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= top_p, 0.0)
    return torch.zeros_like(probabilities).scatter(0, order, ordered)
