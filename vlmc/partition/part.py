"""What each block takes under a setting, on one device: seconds and bytes."""

from __future__ import annotations

from typing import NamedTuple

from vlmc.analysis.report import Block
from vlmc.hardware.device import BYTES
from vlmc.partition.costs import ENCODER_SIDE, OVERLAP, BlockCost, Rooflines, sends_shares
from vlmc.partition.plan import Checkpointing
from vlmc.partition.setting import Setting
from vlmc.partition.shards import first_share, shapes
from vlmc.partition.states import MASTER, held_states
from vlmc.runtime.parallel.plan_rules import puts_off

_KEEPS = {"none": 0, "selective": 1, "full": 2}


class Part(NamedTuple):
    """A block under a setting, on one device: seconds of a micro-batch, then bytes."""

    forward: float = 0.0
    backward: float = 0.0
    weights_late: float = 0.0
    """Of `backward`, gradients of weights that zero-bubble puts off."""
    tail: float = 0.0
    """Seconds once a step: gradients between replicas, the optimiser."""
    update: float = 0.0
    """Of `tail`, the optimiser."""
    summed: float = 0.0
    """Of `tail`, gradients that a tensor group sums up, of what sees a share on each device."""
    exchanged: float = 0.0
    """Of `tail`, gradients and weights of replicas."""
    gathered: float = 0.0
    """Of `forward` and `backward`, seconds that wait for weights and gradients of replicas."""
    weights: float = 0.0
    gradients: float = 0.0
    waiting: float = 0.0
    """Gradients of weights that zero-bubble has put off, before they are added to the others."""
    optimiser: float = 0.0
    saved: float = 0.0
    """Of a micro-batch."""
    put_off: float = 0.0
    """Of a micro-batch, gradients that wait for the weights' turn."""
    again_peak: float = 0.0
    """Of what is computed again then; gradients of all weights of a block come at once."""
    forward_peak: float = 0.0
    """Over what is saved, gathered weights included."""
    first_peak: float = 0.0
    """Of a first backward pass over what is saved, gathered weights and its own gradients on their
    way included."""
    backward_peak: float = 0.0
    """Of a later one, to whose gradients its own are added."""
    leaving: float = 0.0
    """When it has run backward and its gradients are sent, over what was saved before it."""
    sending: float = 0.0
    """What its gradients are sent in while the block before it runs backward."""
    received: float = 0.0
    """What the gather of its weights brought, while a block beside the stacks runs."""
    regathered: float = 0.0
    """What a gather brings of it as a backward pass begins."""
    buffers: float = 0.0
    """Of these peaks, what is gathered or sent."""
    late: float = 0.0
    """Gradients that wait for the end of a backward pass, beside those of earlier ones."""
    ending: float = 0.0
    """When all is computed: those, and what they are sent in."""
    stepping: float = 0.0
    """What the optimiser makes on its way."""
    released: float = 0.0
    """Copies of weights that go when the last backward pass is done with the block."""
    cache: float = 0.0
    output: float = 0.0
    looks: float = 0.0


def keeps(setting: Setting, block: Block) -> Checkpointing:
    """Checkpointing of a block. What stands beside the stacks is never computed again."""
    return setting.kept(block.name) if block.reached and "*" in block.name else "none"


def word(setting: Setting, block: Block) -> int:
    """Where costs by checkpointing have those of a block."""
    return _KEEPS[keeps(setting, block)]


def gathers(block: Block) -> tuple[bool, bool]:
    """Whether FSDP2 gathers sharded weights of a block for the forward pass, and again for the
    backward pass: what stands beside the stacks is gathered with all else of its stage that does, a
    block of a stack that does not run never."""
    beside = "*" not in block.name
    return beside or bool(block.operators), beside or block.reached


def summed_gradients(setting: Setting, block: Block, cost: BlockCost) -> tuple[float, int]:
    """Bytes of a device's gradients of what several ranks of a tensor group have alike, each for a
    share of the images or of the tokens, and how many ranks that are."""
    seen, ranks = cost.shapes, 1
    if block.role in ENCODER_SIDE:
        ranks = setting.copies
    elif setting.sequence_parallel and sends_shares(block) and not block.name.endswith(".begin"):
        found, ranks = shapes(block.tensors, block.rows), setting.tensor
        seen = tuple(found[place] for place in block.seeing)
    if ranks == 1 or not block.stepped:
        return 0.0, 1
    return float(first_share(seen, setting.data if setting.zero else 1) * MASTER), ranks


def parts(lines: Rooflines, setting: Setting) -> tuple[Part, ...]:
    """By distinct block."""
    costs = lines.blocks(*setting.costed)
    return tuple(_part(lines, setting, number, cost) for number, cost in enumerate(costs))


def _part(lines: Rooflines, setting: Setting, number: int, cost: BlockCost) -> Part:
    block, request = lines.report.blocks[number], lines.request
    data, zero = setting.data, setting.zero
    size = BYTES[request.precision]
    sent = cost.exchanged.forward / block.all_reduces if cost.exchanged.forward else 0.0
    if request.mode == "serve":
        return Part(
            forward=cost.forward,
            weights=cost.parameters * size,
            forward_peak=cost.saved[0] + cost.peak_forward + sent,
            buffers=sent,
            cache=cost.cache,
            output=cost.output,
            looks=cost.looks,
        )
    trained = cost.parameters if block.trained else 0
    stepped = cost.parameters if block.stepped else 0
    kept = word(setting, block)
    again, late = cost.again[kept], cost.backward_weight
    if puts_off(setting.schedule, setting.pipeline):
        # Once more when the weights' turn comes, and the gradients pass through it again (through
        # attention alone in about the time that it takes). None of that shortens the bubble.
        again += cost.again[kept] + (0.0, again, cost.backward_input)[kept]
        late += again / 2
    backward = cost.backward_input + cost.backward_weight + again
    span = data * setting.tensor
    ahead, again_gathered = gathers(block)
    gather = lines.gather((cost.parameters if zero == 3 else trained) * size, data, span) * ahead
    scatter = lines.gather(stepped * 4, data, span)
    share = stepped / max(1, block.parameters) / (data if zero else 1)
    updating = lines.update(number, share) if stepped else 0.0
    partial, ranks = summed_gradients(setting, block, cost)
    summing = lines.all_reduce(partial, ranks, setting.tensor)
    exchange = 0.0
    late_forward, late_backward = 0.0, 0.0
    # A pipeline reduces what is reduced once a step when its last backward pass is done.
    beside = OVERLAP * backward if setting.pipeline == 1 else 0.0
    if zero == 0:
        exchange = max(0.0, 2 * scatter - beside)
    elif zero < 3:
        exchange = max(0.0, gather - OVERLAP * cost.forward)
        if zero == 1:
            exchange += max(0.0, scatter - beside)
        else:
            late_backward = max(0.0, scatter - OVERLAP * backward)
    else:
        late_forward = max(0.0, gather - OVERLAP * cost.forward)
        if again_gathered:
            late_backward = max(0.0, gather + scatter - OVERLAP * backward)
    saved = cost.saved[kept]
    held = held_states(lines, setting, block, cost.parameters)
    over = cost.saved[0] - saved + held.gathered_again + sent
    first_peak = later_peak = 0.0
    if block.reached and cost.climb:
        first_peak = over + max([one + made * held.unreduced for one, made in cost.climb])
        later_peak = over + min(first_peak - over, held.added + cost.climb[-1][0])
    return Part(
        forward=cost.forward + late_forward,
        backward=backward + late_backward,
        weights_late=late,
        tail=updating + summing + exchange,
        update=updating,
        summed=summing,
        exchanged=exchange,
        gathered=late_forward + late_backward,
        weights=held.weights,
        gradients=held.gradients,
        waiting=held.waiting,
        optimiser=held.optimiser,
        saved=saved,
        put_off=cost.late,
        again_peak=first_peak if saved < cost.saved[0] else 0.0,
        forward_peak=cost.peak_forward + held.gathered + sent,
        first_peak=first_peak,
        backward_peak=later_peak,
        leaving=cost.output + held.unreduced + held.sending + held.received
        if held.sending
        else 0.0,
        sending=held.sending,
        received=held.received,
        regathered=held.regathered,
        buffers=max(held.gathered, held.gathered_again + held.unreduced + held.sending) + sent,
        late=held.late,
        ending=held.ending,
        stepping=held.stepping,
        released=held.released,
        output=cost.output,
        looks=cost.looks,
    )
