"""Sequences shared out over a tensor group between split layers (Korthikanti et al., 2022, 4.2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard


class Sequences:
    """Hidden states [rows, tokens, width] of which each rank of a group holds as many tokens as the
    others; without a group, all of them."""

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh

    def share(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of what all ranks have made alike."""
        return self._moved(whole, Replicate(), Shard(dim))

    def whole(self, share: Tensor, dim: int = 1) -> Tensor:
        """All tokens, for what all ranks do alike: so the gradient of a share is a part of that of
        the whole."""
        return self._moved(share, Shard(dim), Replicate())

    def _moved(self, tensor: Tensor, now: Placement, then: Placement) -> Tensor:
        if self.mesh is None:
            return tensor
        made = DTensor.from_local(tensor, self.mesh, [now], run_check=False)
        return made.redistribute(placements=[then]).to_local()


def gather_once(module: Any, mesh: DeviceMesh, *, itself: bool, masked: bool) -> None:
    """Lets a split module read whole sequences where it is given shares, gathered once for all of
    its projections; they sum the gradient up while it is scattered. `itself`: an attention whose
    keys and values are made of the queries' sequence. `masked`: its mask is a share, too."""
    kept: list[Tensor] = []

    def gathered(share: Tensor) -> Tensor:
        made = DTensor.from_local(share, mesh, [Shard(1)], run_check=False)
        return made.redistribute(placements=[Replicate()])

    def before(inner: Any, given: Any, named: Any) -> Any:
        x = kept.pop() if kept else gathered(given[0])
        if masked:
            named = {**named, "mask": Sequences(mesh).whole(named["mask"], dim=2)}
        return (x, *given[1:]), named

    if itself:
        key_value = module.key_value

        def first(source: Tensor, *more: Any) -> Any:
            kept[:] = [gathered(source)]
            return key_value(kept[0], *more)

        module.key_value = first
    module.register_forward_pre_hook(before, with_kwargs=True)
