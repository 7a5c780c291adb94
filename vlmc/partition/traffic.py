"""What the busiest pipeline group exchanges with others: bytes of whole tensors, and the seconds of
it that nothing hides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vlmc.hardware.device import BYTES
from vlmc.partition.chain import Chain
from vlmc.partition.costs import ENCODER_SIDE, LOSS, Rooflines, shares_tokens
from vlmc.partition.leaf import Leaf
from vlmc.partition.part import gathers, keeps, summed_gradients, word
from vlmc.partition.plan import Collective, CollectiveKind
from vlmc.partition.setting import Setting


@dataclass(slots=True)
class _Moved:
    """A kind of collective of a micro-batch."""

    bytes: float = 0.0
    seconds: float = 0.0

    def add(self, size: float, seconds: float) -> None:
        """One more."""
        self.bytes += size
        self.seconds += seconds

    def times(self, count: int, kind: CollectiveKind, purpose: str, group: int) -> Collective:
        """Of so many micro-batches."""
        return Collective(
            kind=kind,
            purpose=purpose,
            group=group,
            bytes=int(self.bytes * count),
            seconds=self.seconds * count,
        )


def collectives(leaf: Leaf) -> Iterator[Collective]:
    """Of one step; when serving, of reading all prompts."""
    chain, setting = leaf.chain, leaf.chain.setting
    training = chain.lines.request.mode == "train"
    held = _busiest(leaf, chain.work)
    blocks = _blocks(held, chain.lines.report.order)
    yield from _tensor(chain.lines, setting, blocks, "" if training else " of prompts")
    messages = _messages(held, chain.length, chain.carried)
    messages += _messages(held, chain.length, chain.returned) if training else 0.0
    yield Collective(
        kind="send",
        purpose="activations and their gradients between stages"
        if training
        else "activations of prompts between stages",
        group=2,
        bytes=int(messages * setting.micro_batches),
        seconds=leaf.pace.messages,
    )
    if training and setting.data > 1:
        yield from _replicas(chain, blocks)
    if training:
        yield from _once(leaf, blocks)


def token_collectives(leaf: Leaf) -> Iterator[Collective]:
    """Of all tokens of answers that follow their first."""
    chain, setting = leaf.chain, leaf.chain.setting
    steps = chain.lines.request.steps
    held = _busiest(leaf, chain.token)
    blocks = _blocks(held, chain.token_order)
    for one in _tensor(chain.token_lines, setting, blocks, " of tokens"):
        yield one.model_copy(update={"bytes": one.bytes * steps, "seconds": one.seconds * steps})
    messages = _messages(held, chain.length, chain.carried_token) * setting.micro_batches
    yield Collective(
        kind="send",
        purpose="activations of tokens between stages",
        group=2,
        bytes=int(messages * steps),
        seconds=leaf.pace.token_messages * steps,
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
    costs = lines.blocks(*setting.costed)
    summed, gathered, scattered = _Moved(), _Moved(), _Moved()
    seen, visual = _Moved(), _Moved()
    for number in blocks:
        block, cost = lines.report.blocks[number], costs[number]
        size, seconds = cost.exchanged, cost.exchange_seconds
        back = block.reached and lines.request.mode == "train"
        again = back * cost.reduced_again[word(setting, block)]
        apart = setting.copies > 1 and block.role in ENCODER_SIDE
        sums = seen if apart else summed
        (visual if apart else gathered).add(sum(cost.gathered), sum(cost.gather_seconds))
        sums.add(back * size.looked, back * seconds.looked)
        both = (1 + again) * size.forward + back * size.backward
        took = (1 + again) * seconds.forward + back * seconds.backward
        if setting.sequence_parallel and shares_tokens(block):
            # What runs again enters every layer again, but may end before the sum of the last.
            full = back and keeps(setting, block) == "full"
            gathered.add((1 + full) * size.forward + back * size.backward, took / 2)
            scattered.add(both, took / 2)
        else:
            sums.add(both, took)
    times, ranks = setting.micro_batches, setting.tensor
    logits = "sequences before split layers, logits" if setting.sequence_parallel else "logits"
    partial = f"partial sums of tensor parallelism{of}"
    yield summed.times(times, "all_reduce", partial, ranks)
    yield seen.times(times, "all_reduce", f"partial sums of the encoder's{of}", setting.vision)
    yield gathered.times(times, "all_gather", f"{logits}{of}", ranks)
    yield visual.times(times, "all_gather", f"visual tokens{of}", setting.copies)
    yield scattered.times(times, "reduce_scatter", "sequences after split layers", ranks)


def _once(leaf: Leaf, blocks: Sequence[int]) -> Iterator[Collective]:
    """What a step moves once, beside gradients and weights of replicas."""
    chain, setting, shared = leaf.chain, leaf.chain.setting, leaf.chain.shared
    costs = chain.lines.blocks(*setting.costed)
    shares: dict[int, _Moved] = {}
    for number in blocks:
        block = chain.lines.report.blocks[number]
        size, ranks = summed_gradients(setting, block, costs[number])
        shares.setdefault(ranks, _Moved()).add(size, chain.parts[number].summed)
    for ranks, one in shares.items():
        purpose = "gradients of what sees a share of images or tokens"
        yield one.times(1, "all_reduce", purpose, ranks)
    groups = shared.groups(leaf.ends, setting.pipeline) if shared else 1
    if shared and groups > 1:
        yield Collective(
            kind="all_reduce",
            purpose="gradients of an embedding that several stages read",
            group=groups,
            bytes=int(shared.bytes),
            seconds=shared.seconds,
        )
    count = chain.lines.cluster.count
    yield Collective(
        kind="all_reduce",
        purpose="loss",
        group=count,
        bytes=LOSS if count > 1 else 0,
        seconds=chain.lines.agreement,
    )


def _replicas(chain: Chain, blocks: Sequence[int]) -> Iterator[Collective]:
    """Gradients and weights between replicas; seconds are those that compute does not hide."""
    lines, setting = chain.lines, chain.setting
    costs = lines.blocks(*setting.costed)
    report, times = lines.report, setting.micro_batches
    number = BYTES[lines.request.precision]
    kinds = [(report.blocks[one], costs[one].parameters) for one in blocks]
    trained = sum(size for block, size in kinds if block.trained and gathers(block)[0])
    stepped = sum(size for block, size in kinds if block.stepped)
    seconds = sum(
        times * part.gathered + part.exchanged for part in (chain.parts[one] for one in blocks)
    )
    brought = {0: 0.0, 1: trained * number, 2: trained * number}.get(setting.zero)
    if brought is None:
        brought = times * number * sum(size * sum(gathers(block)) for block, size in kinds)
    scatters = stepped * 4 * (times if setting.zero >= 2 else 1)
    moved = brought + scatters
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
        bytes=int(brought),
        seconds=seconds * brought / moved if moved else 0.0,
    )
