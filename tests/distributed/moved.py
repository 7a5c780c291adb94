"""What ranks send each other: bytes by kind of collective."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = {
    "c10d._allgather_base_": "all_gather",
    "c10d._reduce_scatter_base_": "reduce_scatter",
    "c10d.allreduce_": "all_reduce",
    "c10d.send": "send",
    "c10d.recv_": "send",
    "_c10d_functional.all_gather_into_tensor": "all_gather",
    "_c10d_functional.reduce_scatter_tensor": "reduce_scatter",
    "_c10d_functional.all_reduce": "all_reduce",
}


class Moved(TorchDispatchMode):
    """Counts while it is entered, what one rank does by itself left out. Of a gather the whole
    tensor counts, as of a scatter. The stages of a pipeline send each other whole numbers before
    their first step, to agree on what comes: these are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        kind = KINDS.get(str(func.overloadpacket))
        if kind is not None and not _alone(args):
            leaves = tree_leaves((args, made))
            tensors = [x for x in leaves if isinstance(x, Tensor)]
            given = [x for x in tensors if x.is_floating_point() or x.dtype == torch.bool]
            sizes = [x.numel() * x.element_size() for x in given]
            self.bytes[kind] += max(sizes, default=0)
        return made


def _alone(args: tuple[Any, ...]) -> bool:
    """Whether a collective's group has one rank."""
    boxed = next((one for one in args if isinstance(one, torch.ScriptObject)), None)
    return boxed is not None and dist.ProcessGroup.unbox(boxed).size() == 1
