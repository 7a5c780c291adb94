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

    def whole(self, share: Tensor) -> Tensor:
        """All tokens, for what all ranks do alike: so the gradient of a share is a part of that of
        the whole."""
        return self._moved(share, Shard(1), Replicate())

    def _moved(self, tensor: Tensor, now: Placement, then: Placement) -> Tensor:
        if self.mesh is None:
            return tensor
        made = DTensor.from_local(tensor, self.mesh, [now], run_check=False)
        return made.redistribute(placements=[then]).to_local()


def enter_once(
    module: Any, mesh: DeviceMesh, *, shared: bool, itself: bool, masked: bool = False
) -> None:
    """Lets all projections of a split module read one tensor of the group, so that they sum its
    gradient up before ranks do. `shared`: it is given shares of sequences, which are gathered, and
    the gradient is scattered. `itself`: an attention whose keys and values are made of the queries'
    sequence; others are given whole ones for them. `masked`: its mask is of a share of the queries;
    that of all of them follows from what they see, its `seen`."""
    made: list[tuple[Tensor, Tensor]] = []

    def entered(x: Tensor, *, share: bool) -> Tensor:
        placement = Shard(1) if share else Replicate()
        one = DTensor.from_local(x, mesh, [placement], run_check=False)
        return one.redistribute(placements=[Replicate()]) if share else one

    def before(inner: Any, given: Any, named: Any) -> Any:
        source, x = made.pop() if made else (None, given[0])
        x = x if source is given[0] else entered(given[0], share=shared)
        if masked:
            # A row without a single key would be NaN: it sees all, and the block drops the result.
            seen: Tensor = module.__dict__.pop("seen")
            named = {**named, "mask": seen | ~seen.any(dim=-1, keepdim=True)}
        return (x, *given[1:]), named

    if hasattr(module, "key_value"):
        key_value = module.key_value

        def first(source: Tensor, *more: Any) -> Any:
            made[:] = [(source, entered(source, share=shared and itself))]
            return key_value(made[0][1], *more)

        module.key_value = first
    module.register_forward_pre_hook(before, with_kwargs=True)
