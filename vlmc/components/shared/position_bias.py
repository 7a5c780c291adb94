"""Relative position bias of T5 (Raffel et al., 2020, section 2.1)."""

import math

import torch
from torch import Tensor, nn


def distance_buckets(
    distances: Tensor, *, buckets: int, max_distance: int, bidirectional: bool
) -> Tensor:
    """The bucket of each distance from query to key (negative: the key is behind), any shape.

    Half of a direction's buckets hold one distance each, the others grow as its logarithm up to
    `max_distance`. With `bidirectional` the second half of all buckets is for keys ahead; without,
    keys ahead share the bucket of distance 0 (a causal mask hides them).
    """
    ahead = torch.zeros_like(distances)
    if bidirectional:
        buckets = buckets // 2
        ahead = (distances > 0).long() * buckets
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    exact = buckets // 2
    grown = torch.log(distances.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    logarithmic = (exact + (grown * (buckets - exact)).long()).clamp(max=buckets - 1)
    return ahead + torch.where(distances < exact, distances, logarithmic)


class PositionBias(nn.Module):
    """What attention scores gain by the distance of query and key: [batch, heads, queries, keys]
    from positions of queries [batch, queries] and keys [batch, keys].

    One table serves every layer of a stack.
    """

    def __init__(self, *, heads: int, buckets: int, max_distance: int, bidirectional: bool) -> None:
        super().__init__()
        self.buckets = buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.table = nn.Embedding(buckets, heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        bucket = distance_buckets(
            keys[:, None, :] - queries[:, :, None],
            buckets=self.buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        return self.table(bucket).permute(0, 3, 1, 2)
