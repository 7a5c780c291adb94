"""What a device holds of a block's parameters when train.py trains it with FSDP2.

Masters of trained weights are in fp32, sharded from ZeRO 1 on. Copies of them in the number format
that is computed in are held from the first forward pass to the end of the step (ZeRO 1 and 2;
schedules that gather whole stages; what stands beside the stacks, which is gathered with its
stage) or while a block is at work. Frozen weights are copied where they are sharded, at ZeRO 3.
At ZeRO 3 what stands beside the stacks is gathered anew as a backward pass begins. Gradients are
whole in fp32 until they are reduced: with each backward pass from ZeRO 2 on, else with the last, or
after it in a pipeline. One device that computes in fp32 has no need of FSDP2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from vlmc.analysis.memory import CUDA_QUANTUM
from vlmc.analysis.report import Block
from vlmc.hardware.device import BYTES
from vlmc.ir.training import OPTIMISERS, whole_weights
from vlmc.partition.costs import Rooflines
from vlmc.partition.setting import Setting

MASTER = 4
"""Bytes of a trained parameter, and of its gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of a block's parameters on one device."""

    weights: float
    gradients: float
    optimiser: float
    waiting: float
    """Gradients of weights that zero-bubble has put off, before they are added to the others."""
    gathered: float
    """Weights beside `weights` while the block runs forward."""
    gathered_again: float
    """While it runs backward."""
    received: float
    """Of `gathered`, what the gather brought: blocks beside the stacks that follow it hold that,
    too; so they do in the backward pass, in which it is fetched ahead."""
    regathered: float
    """What a gather brings of a block beside the stacks as a backward pass begins."""
    unreduced: float
    """Its gradients while it runs backward, beyond `late`; each comes in its turn."""
    added: float
    """Of a further micro-batch, those of `unreduced` that are there at a time."""
    sending: float
    """What those are sent in while the block before it in the chain runs backward."""
    late: float
    """Gradients of what is gathered with its stage: once there, they wait for the end of a backward
    pass."""
    ending: float
    """`late`, and what those are sent in, less the copies of weights that are gone by then."""
    stepping: float
    """What the optimiser makes on its way, all roots of second moments in one call, less copies."""
    released: float
    """Copies, in `weights`, that go when the last backward pass is done with the block."""


def held_states(
    lines: Rooflines, setting: Setting, block: Block, parameters: int, tensors: Sequence[int] = ()
) -> States:
    """Of a block of so many parameters on a device before data parallelism shards them. `tensors`:
    their sizes, where they are not the block's own."""
    request, data, zero = lines.request, setting.data, setting.zero
    size = BYTES[request.precision]
    trained = parameters if block.trained else 0
    # What does not run never gets gradients.
    stepped = trained if block.reached else 0
    wrapped = data > 1 or size < MASTER
    copied = (parameters if zero == 3 else trained) if wrapped else 0
    stacked = "*" in block.name
    looped = whole_weights(setting.schedule, setting.pipeline)
    whole = zero in (1, 2) or looped or not stacked
    once = setting.micro_batches == 1
    reduced = zero >= 2 or setting.pipeline == 1
    shards = data if zero else 1
    made = stepped * MASTER / (data if zero >= 2 or (zero and once and reduced) else 1)
    cuda = lines.cluster.device.cuda
    rounded = _Rounded(tuple(tensors or block.tensors), parameters, CUDA_QUANTUM if cuda else 1)
    masters = rounded(MASTER, shards) if trained else rounded(size, data if zero == 3 else 1)
    state = OPTIMISERS[request.optimiser]
    copies = rounded(size, 1) if whole and copied else 0.0
    released = copies if stacked and setting.pipeline == 1 else 0.0
    unreduced = copied and stepped * size
    late = 0.0 if stacked else max(0.0, unreduced - (made if once else 0.0))
    gradients = made if wrapped or not stepped else rounded(MASTER, 1)
    fetched = copied * size if zero == 3 and not looped else 0.0
    ending = 0.0 if stacked else late + (copied and stepped * MASTER)
    return States(
        weights=masters + copies,
        gradients=gradients,
        optimiser=rounded(state / 2, shards) * 2 if stepped else 0.0,
        waiting=unreduced if setting.schedule == "zero_bubble" and size < MASTER else 0.0,
        # A block's own copy, and what the latest gather received, or in the backward pass the next.
        gathered=copied * size * (zero > 0 if whole else 1 + (zero == 3)) if stacked else 0.0,
        gathered_again=0.0 if whole else copied * size * (1 + (zero == 3)),
        received=fetched if stacked else 0.0,
        regathered=0.0 if stacked else fetched,
        unreduced=unreduced - late if wrapped else gradients,
        added=unreduced - late if wrapped else stepped * MASTER * rounded.largest,
        sending=copied and stepped * MASTER * reduced if stacked else 0.0,
        late=late,
        ending=ending - (copies if setting.pipeline == 1 or not stacked else 0.0),
        stepping=stepped / shards * MASTER * (cuda and request.optimiser == "adamw") - copies,
        released=released,
    )


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Parameters as a device's allocator gives them room."""

    tensors: tuple[int, ...]
    parameters: int
    quantum: int

    @property
    def largest(self) -> float:
        """The share of them that is in one tensor, at most."""
        return max(self.tensors) / sum(self.tensors) if self.parameters and self.tensors else 1.0

    def __call__(self, each: float, shards: int) -> float:
        """Bytes of one shard of them, of `each` bytes a parameter."""
        if self.quantum == 1 or not self.tensors or not each:
            return self.parameters * each / shards
        share = self.parameters / sum(self.tensors) / shards
        return _rounded(self.tensors, share * each, self.quantum)


@cache
def _rounded(tensors: tuple[int, ...], each: float, quantum: int) -> float:
    return sum(-(-one * each // quantum) for one in tensors) * quantum
