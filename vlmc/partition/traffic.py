"""What the busiest pipeline group exchanges with others: bytes of whole tensors, and the seconds of
it that nothing hides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vlmc.hardware.device import BYTES
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.leaf import Leaf
from vlmc.partition.part import word
from vlmc.partition.plan import Collective
from vlmc.partition.setting import Setting


def collectives(leaf: Leaf) -> Iterator[Collective]:
    """Of one step; when serving, of reading all prompts."""
    chain, setting = leaf.chain, leaf.chain.setting
    training = chain.lines.request.mode == "train"
    held = _busiest(leaf, chain.work)
    blocks = _blocks(held, chain.lines.report.order)
    yield from _tensor(chain.lines, setting, blocks, "" if training else " of prompts")
    messages = _messages(held, chain.length, chain.carried) * setting.micro_batches
    yield Collective(
        kind="send",
        purpose="activations and their gradients between stages"
        if training
        else "activations of prompts between stages",
        group=2,
        bytes=int(messages * (2 if training else 1)),
        seconds=leaf.pace.messages,
    )
    if training and setting.data > 1:
        yield from _replicas(chain, blocks)


def token_collectives(leaf: Leaf) -> Iterator[Collective]:
    """Of all tokens of answers."""
    chain, setting = leaf.chain, leaf.chain.setting
    generate = chain.lines.request.generate
    held = _busiest(leaf, chain.token)
    blocks = _blocks(held, chain.token_order)
    for one in _tensor(chain.token_lines, setting, blocks, " of tokens"):
        yield one.model_copy(
            update={"bytes": one.bytes * generate, "seconds": one.seconds * generate}
        )
    messages = _messages(held, chain.length, chain.carried_token) * setting.micro_batches
    yield Collective(
        kind="send",
        purpose="activations of tokens between stages",
        group=2,
        bytes=int(messages * generate),
        seconds=leaf.pace.token_messages * generate,
    )


def _busiest(leaf: Leaf, weights: Sequence[float]) -> list[tuple[int, int]]:
    """What the group with most to do holds of the chain; `weights`: sums over it."""
    return max(
        leaf.chain.groups(leaf.ends),
        key=lambda stretches: sum(weights[end] - weights[first] for first, end in stretches),
    )


def _blocks(held: Sequence[tuple[int, int]], order: Sequence[int]) -> list[int]:
    return [block for first, end in held for block in order[first:end]]


def _messages(
    held: Sequence[tuple[int, int]], length: int, carried: Callable[[int], float]
) -> float:
    """Bytes that a group is sent and sends on of a micro-batch, one way."""
    cuts = [cut for stretch in held for cut in stretch if 0 < cut < length]
    return sum(map(carried, cuts))


def _tensor(
    lines: Rooflines, setting: Setting, blocks: Sequence[int], of: str
) -> Iterator[Collective]:
    costs = lines.blocks(
        setting.micro_batch,
        setting.tensor,
        setting.sequence_parallel,
        setting.placement == "replicated",
    )
    size, seconds, gathered, waits = 0.0, 0.0, 0.0, 0.0
    for number in blocks:
        block, cost = lines.report.blocks[number], costs[number]
        back = block.reached and lines.request.mode == "train"
        times = 1 + back * cost.reduced_again[word(setting, block)], back
        for way in (0, 1):
            size += cost.exchanged[way] * times[way] * setting.micro_batches
            seconds += cost.exchange_seconds[way] * times[way] * setting.micro_batches
        gathered += sum(cost.gathered) * setting.micro_batches
        waits += sum(cost.gather_seconds) * setting.micro_batches
    if not setting.sequence_parallel:
        yield Collective(
            kind="all_reduce",
            purpose=f"partial sums of tensor parallelism{of}",
            group=setting.tensor,
            bytes=int(size),
            seconds=seconds,
        )
        yield Collective(
            kind="all_gather",
            purpose=f"logits{of}",
            group=setting.tensor,
            bytes=int(gathered),
            seconds=waits,
        )
        return
    yield Collective(
        kind="all_gather",
        purpose="sequences before split layers, and logits",
        group=setting.tensor,
        bytes=int(size + gathered),
        seconds=seconds / 2 + waits,
    )
    yield Collective(
        kind="reduce_scatter",
        purpose="sequences after split layers",
        group=setting.tensor,
        bytes=int(size),
        seconds=seconds / 2,
    )


def _replicas(chain: Chain, blocks: Sequence[int]) -> Iterator[Collective]:
    """Gradients and weights between replicas; seconds are those that compute does not hide."""
    lines, setting = chain.lines, chain.setting
    costs = lines.blocks(
        setting.micro_batch,
        setting.tensor,
        setting.sequence_parallel,
        setting.placement == "replicated",
    )
    report, times = lines.report, setting.micro_batches
    number = BYTES[lines.request.precision]
    kept = [costs[one].parameters for one in blocks]
    trained = sum(costs[one].parameters for one in blocks if report.blocks[one].trained)
    stepped = sum(costs[one].parameters for one in blocks if report.blocks[one].stepped)
    seconds = sum(
        times * chain.parts[one].gathered + chain.parts[one].tail - chain.parts[one].update
        for one in blocks
    )
    gathers = {0: 0.0, 1: trained * number, 2: trained * number}.get(setting.zero)
    if gathers is None:
        reached = sum(costs[one].parameters for one in blocks if report.blocks[one].reached)
        gathers = times * number * (sum(kept) + reached)
    scatters = stepped * 4 * (times if setting.zero >= 2 else 1)
    moved = gathers + scatters
    if setting.zero == 0:
        yield Collective(
            kind="all_reduce",
            purpose="gradients of replicas",
            group=setting.data,
            bytes=int(scatters),
            seconds=seconds,
        )
        return
    yield Collective(
        kind="reduce_scatter",
        purpose="gradients of replicas",
        group=setting.data,
        bytes=int(scatters),
        seconds=seconds * scatters / moved if moved else 0.0,
    )
    yield Collective(
        kind="all_gather",
        purpose="weights of replicas",
        group=setting.data,
        bytes=int(gathers),
        seconds=seconds * gathers / moved if moved else 0.0,
    )
