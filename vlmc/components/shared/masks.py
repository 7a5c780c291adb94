"""Attention masks: True where a query may look at a key."""

import torch
from torch import Tensor


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


def token_positions(attention_mask: Tensor, queries: int) -> Tensor:
    """Positions [batch, queries] of the newest tokens, counted over tokens that are not padding,
    wherever it stands."""
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.clamp(min=0)[:, -queries:]
