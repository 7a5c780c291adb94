"""What each block takes under a setting, on one device: seconds and bytes."""

from __future__ import annotations

from typing import NamedTuple

from vlmc.analysis.report import Block
from vlmc.hardware.device import BYTES
from vlmc.partition.costs import OVERLAP, BlockCost, Rooflines
from vlmc.partition.plan import Checkpointing
from vlmc.partition.request import OPTIMISERS
from vlmc.partition.setting import Setting
from vlmc.runtime.parallel.plan_rules import whole_weights

_MASTER = 4
"""Bytes of a trained parameter, and of its gradient."""
_BUFFERS = 4
"""Copies of a block at one time: its own, the next one's, and what both are sent in."""
_KEEPS = {"none": 0, "selective": 1, "full": 2}


class Part(NamedTuple):
    """A block under a setting, on one device: seconds of a micro-batch, then bytes."""

    forward: float
    backward: float
    weights_late: float
    """Of `backward`, gradients of weights that zero-bubble puts off."""
    tail: float
    """Seconds once a step: gradients between replicas, the optimiser."""
    update: float
    """Of `tail`, the optimiser."""
    gathered: float
    """Of `forward` and `backward`, seconds that wait for weights and gradients of replicas."""
    weights: float
    gradients: float
    waiting: float
    """Gradients of weights that zero-bubble has put off, before they are added to the others."""
    optimiser: float
    saved: float
    """Of a micro-batch."""
    forward_peak: float
    """Over what is saved."""
    backward_peak: float
    """Over what is saved."""
    buffers: float
    cache: float
    output: float


def keeps(setting: Setting, block: Block) -> Checkpointing:
    """Checkpointing of a block. What stands beside the stacks is never computed again."""
    return setting.kept(block.name) if block.reached and "*" in block.name else "none"


def parts(lines: Rooflines, setting: Setting) -> tuple[Part, ...]:
    """By distinct block."""
    costs = lines.blocks(
        setting.micro_batch,
        setting.tensor,
        setting.sequence_parallel,
        setting.placement == "replicated",
    )
    return tuple(_part(lines, setting, number, cost) for number, cost in enumerate(costs))


def _part(lines: Rooflines, setting: Setting, number: int, cost: BlockCost) -> Part:
    block, request = lines.report.blocks[number], lines.request
    data, zero = setting.data, setting.zero
    size = BYTES[request.precision]
    if request.mode == "serve":
        return Part(
            cost.forward, 0.0, 0.0, 0.0, 0.0, 0.0, cost.parameters * size, 0.0, 0.0, 0.0,
            0.0, cost.saved[0] + cost.peak_forward, 0.0, cost.exchanged and cost.output, cost.cache,
            cost.output,
        )  # fmt: skip
    trained = cost.parameters if block.trained else 0
    state = OPTIMISERS[request.optimiser]
    kept = _KEEPS[keeps(setting, block)]
    again = (0.0, cost.again_selective, cost.again_full)[kept]
    backward = cost.backward_input + cost.backward_weight + again
    span = data * setting.tensor
    gather = lines.gather((cost.parameters if zero == 3 else trained) * size, data, span)
    scatter = lines.gather(trained * 4, data, span)
    share = trained / max(1, block.parameters) / (data if zero else 1)
    updating = lines.update(number, share) if trained else 0.0
    tail = updating
    late_forward, late_backward = 0.0, 0.0
    # A pipeline reduces what is reduced once a step when its last backward pass is done.
    beside = OVERLAP * backward if setting.pipeline == 1 else 0.0
    if zero == 0:
        tail += max(0.0, 2 * scatter - beside)
    elif zero < 3:
        tail += max(0.0, gather - OVERLAP * cost.forward)
        if zero == 1:
            tail += max(0.0, scatter - beside)
        else:
            late_backward = max(0.0, scatter - OVERLAP * backward)
    else:
        late_forward = max(0.0, gather - OVERLAP * cost.forward)
        if block.reached:
            late_backward = max(0.0, gather + scatter - OVERLAP * backward)
    saved = cost.saved[kept]
    states = _held_states(setting, block, cost.parameters, size)
    return Part(
        forward=cost.forward + late_forward,
        backward=backward + late_backward,
        weights_late=cost.backward_weight,
        tail=tail,
        update=updating,
        gathered=late_forward + late_backward,
        weights=states.weights,
        gradients=states.gradients,
        waiting=states.waiting,
        optimiser=trained * state / (data if zero else 1),
        saved=saved,
        forward_peak=cost.peak_forward,
        backward_peak=cost.peak_backward + cost.saved[0] - saved if block.reached else 0.0,
        buffers=states.buffers + (cost.exchanged / block.all_reduces if cost.exchanged else 0.0),
        cache=0.0,
        output=cost.output,
    )


class _States(NamedTuple):
    """Bytes of a block's weights and of their gradients, and beside them while it is at work."""

    weights: float
    gradients: float
    waiting: float
    buffers: float


def _held_states(setting: Setting, block: Block, parameters: int, size: float) -> _States:
    """As train.py has it: FSDP2 keeps masters of trained weights in fp32, sharded from ZeRO 1 on,
    and copies of them in the number format that is computed in: from the first forward pass to the
    end of the step (ZeRO 1 and 2; schedules that gather whole stages; what stands beside the
    stacks, which is gathered with its stage) or while a block is at work. Frozen weights are copied
    where they are sharded, at ZeRO 3. Gradients are whole in fp32 until they are reduced: with each
    backward pass from ZeRO 2 on, else with the last, or after it in a pipeline.
    """
    data, zero = setting.data, setting.zero
    trained = parameters if block.trained else 0
    copied = parameters if zero == 3 else trained
    if data == 1 and size == _MASTER:
        copied = 0
    whole = zero in (1, 2) or looped(setting) or "*" not in block.name
    once = setting.pipeline == 1 and setting.micro_batches == 1
    delayed = setting.schedule == "zero_bubble" and setting.pipeline > 1 and size < _MASTER
    return _States(
        weights=(trained * _MASTER or parameters * size)
        / (data if zero == 3 or (zero and trained) else 1)
        + (copied * size if whole else 0.0),
        gradients=trained * _MASTER / (data if zero >= 2 or (zero == 1 and once) else 1),
        waiting=copied * size if delayed else 0.0,
        buffers=(_BUFFERS - 1 if whole else _BUFFERS) * copied * size,
    )


def looped(setting: Setting) -> bool:
    """Whether the weights of whole stages stay gathered."""
    return whole_weights(setting.schedule, setting.pipeline)
