"""Parameters that several stages read: each stage has a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from vlmc.runtime.parallel.stage import Cut, Stage, owned
from vlmc.runtime.parallel.untyped import DISTRIBUTED


class Copies:
    """The copies of trained parameters (of a tied embedding) that a rank and others hold. All ranks
    of a mesh make one."""

    def __init__(self, cuts: Sequence[Cut], trained: Sequence[str], mesh: DeviceMesh) -> None:
        size, own = mesh["pipeline"].size(), mesh["pipeline"].get_local_rank()
        stages: dict[str, list[int]] = {}
        for cut in cuts:
            for name in {name for step in cut.steps for name in owned(step, trained)}:
                stages.setdefault(name, []).append(cut.index)
        self.names: dict[str, Any] = {}
        """With the group of ranks that hold them; None where one rank holds all copies."""
        made: dict[tuple[int, ...], Any] = {}
        for name in trained:
            read = stages.get(name, [])
            place = tuple(sorted({index % size for index in read}))
            if len(read) > 1 and place not in made:
                made[place] = _holders(place, mesh)
            if len(read) > 1 and own in place:
                self.names[name] = made[place]

    def add_up(self, stages: Sequence[Stage]) -> None:
        """Gives each copy the sum of the gradients of all."""
        for name, group in self.names.items():
            own = [p for s in stages for n, p in s.model.named_parameters() if n == name]
            for parameter in own:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            total, *others = [local_of(p.grad) for p in own if p.grad is not None]
            for other in others:
                total += other
            if group is not None:
                DISTRIBUTED.all_reduce(total, group=group)
            for other in others:
                other.copy_(total)


def _holders(place: Sequence[int], mesh: DeviceMesh) -> Any:
    """This rank's group with those that lie as it does in some groups of the pipeline."""
    if len(place) == 1:
        return None
    if len(place) == mesh["pipeline"].size():
        return mesh["pipeline"].get_group()
    ranks: Any = mesh.mesh[list(place)].flatten(1).T
    return DISTRIBUTED.new_subgroups_by_enumeration(ranks.tolist())[0]


def local_of(tensor: Tensor) -> Tensor:
    """A rank's own part of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
