"""Where tokens stand, and attention masks: True where a query may look at a key."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Places:
    """Where the newest tokens of a causal sequence stand, and what they may look at.

    `positions` [batch, queries] and `keys` [batch, keys] (either batch may be 1) count tokens that
    are not padding; `mask` [batch, 1, queries, keys], or None where `causal` says it all or every
    query sees every key.
    """

    positions: Tensor
    keys: Tensor
    mask: Tensor | None
    causal: bool


def places(attention_mask: Tensor | None, x: Tensor, past: int) -> Places:
    """The places of x [batch, queries, width], the newest tokens after `past` others.

    `attention_mask` [batch, past + queries] is 1 at tokens and 0 at padding; None where nothing is
    padding. Raises ValueError for a mask of another length.
    """
    queries = x.shape[1]
    if attention_mask is None:
        keys = torch.arange(past + queries, device=x.device)[None]
        positions = keys[:, past:]
        if past == 0:
            return Places(positions, keys, None, True)
        if queries == 1:  # the newest token sees all
            return Places(positions, keys, None, False)
        return Places(positions, keys, (keys <= positions[0, :, None])[None, None], False)
    keys = token_positions(attention_mask)
    mask = causal_mask(attention_mask, queries, past)
    return Places(keys[:, past:], keys, mask, False)


def causal_mask(attention_mask: Tensor, queries: int, past: int) -> Tensor:
    """The mask [batch, 1, queries, keys] of the newest `queries` tokens of a causal sequence.

    `attention_mask` [batch, keys] is 1 at tokens and 0 at padding, over the `past` tokens too. A
    padded query sees itself, so that no row is empty and no NaN can arise in it. Raises ValueError
    for a mask of another length.
    """
    keys = attention_mask.shape[1]
    if keys != past + queries:
        raise ValueError(
            f"attention_mask covers {keys} tokens, but there are {past} before and {queries} new"
        )
    key = torch.arange(keys, device=attention_mask.device)
    query = key[keys - queries :, None]
    seen = (key <= query) & attention_mask[:, None, :].bool()
    return (seen | (key == query))[:, None]


def padding_mask(attention_mask: Tensor) -> Tensor:
    """The mask [batch, 1, 1, keys] of a sequence in which every token sees every token."""
    return attention_mask[:, None, None, :].bool()


def token_positions(attention_mask: Tensor) -> Tensor:
    """Positions [batch, tokens], counted over tokens that are not padding, wherever it stands."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
