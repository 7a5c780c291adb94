"""Images shared out over copies of the encoder, each on one rank or split over several."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd
from torch import Tensor

from vlmc.runtime.parallel.chain import Data, State, passed
from vlmc.runtime.parallel.untyped import DISTRIBUTED


class SharedImages:
    """What the copies of an encoder in a tensor group do with the images of a micro-batch: each
    encodes its share, then all have the visual tokens of all. `group`: ranks that hold the same of
    their copies."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.ranks = DISTRIBUTED.get_world_size(group)
        self.rank = DISTRIBUTED.get_rank(group)

    def shared(self, data: Data) -> Data:
        """The micro-batch with this copy's images; blank ones fill the last share, so that every
        copy runs on as many."""
        images: Tensor = data["images"]
        share = -(-images.shape[0] // self.ranks)
        missing = share * self.ranks - images.shape[0]
        filled = torch.cat((images, images.new_zeros((missing, *images.shape[1:]))))
        return {**data, "images": filled[self.rank * share : (self.rank + 1) * share]}

    def gathered(self, state: State, data: Data) -> State:
        """The state with the visual tokens of all images."""
        visual: Tensor = _GATHER.apply(state["visual"], self.group)
        return passed(state, visual=visual[: data["images"].shape[0]])


class Gather(torch.autograd.Function):
    """What the ranks of a group made, put together on each of them, which all go on alike: the
    gradient of each share is a part of that of the whole."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: Any) -> Tensor:
        ctx.group = group
        share = share.contiguous()
        ranks: int = DISTRIBUTED.get_world_size(group)
        found = share.new_empty((ranks * share.shape[0], *share.shape[1:]))
        # PyTorch 2.13 has a new name for it, and warns of the former.
        single = getattr(DISTRIBUTED, "all_gather_single", None)
        (single or DISTRIBUTED.all_gather_into_tensor)(found, share, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ranks: int = DISTRIBUTED.get_world_size(ctx.group)
        rank: int = DISTRIBUTED.get_rank(ctx.group)
        return gradients[0].tensor_split(ranks)[rank].contiguous(), None


_GATHER: Any = Gather
