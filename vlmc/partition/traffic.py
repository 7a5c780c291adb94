"""What the busiest pipeline group exchanges with others: bytes of whole tensors, and the seconds of
it that nothing hides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vlmc.analysis.report import Block
from vlmc.hardware.device import BYTES
from vlmc.partition.chain import Chain
from vlmc.partition.costs import ENCODER_SIDE, LOSS, Rooflines, shares_tokens
from vlmc.partition.leaf import Leaf
from vlmc.partition.part import gathers, keeps, summed_gradients, word
from vlmc.partition.plan import Collective, CollectiveKind
from vlmc.partition.setting import Setting
from vlmc.partition.shards import Shapes, first_share, padded, single
from vlmc.partition.states import MASTER
from vlmc.runtime.parallel.plan_rules import puts_off


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


def collectives(leaf: Leaf, group: int | None = None) -> Iterator[Collective]:
    """Of one step; when serving, of reading all prompts. `group`: of the pipeline, where it is not
    the busiest."""
    chain, setting = leaf.chain, leaf.chain.setting
    training = chain.lines.request.mode == "train"
    group = chain.busiest(leaf.ends) if group is None else group
    held = chain.groups(leaf.ends)[group]
    blocks = _blocks(held, chain.lines.report.order)
    # What the first group puts off passes through nothing again: it has no inputs' turn before.
    late = group > 0 and puts_off(setting.schedule, setting.pipeline)
    of = "" if training else " of prompts"
    yield from _tensor(chain.lines, setting, blocks, of, late=training and late)
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
        yield from _replicas(chain, held)
    if training:
        yield from _once(leaf, group, blocks)


def token_collectives(leaf: Leaf) -> Iterator[Collective]:
    """Of all tokens of answers that follow their first."""
    chain, setting = leaf.chain, leaf.chain.setting
    steps = chain.lines.request.steps
    held = chain.groups(leaf.ends)[chain.busiest(leaf.ends, chain.token)]
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


def _blocks(held: Sequence[tuple[int, int]], order: Sequence[int]) -> list[int]:
    return [block for first, end in held for block in order[first:end]]


def _messages(
    held: Sequence[tuple[int, int]], length: int, carried: Callable[[int], float]
) -> float:
    """Bytes that a group is sent and sends on of a micro-batch, one way."""
    cuts = [cut for stretch in held for cut in stretch if 0 < cut < length]
    return sum(map(carried, cuts))


def _tensor(
    lines: Rooflines, setting: Setting, blocks: Sequence[int], of: str, *, late: bool = False
) -> Iterator[Collective]:
    """`late`: gradients of weights have a turn of their own, in which blocks that are computed
    again are so once more, and gradients pass through them."""
    costs = lines.blocks(*setting.costed)
    summed, gathered, scattered = _Moved(), _Moved(), _Moved()
    seen, visual = _Moved(), _Moved()
    sizes, starts = lines.sizes(setting.micro_batch), _starts(lines) if late else set[int]()
    for number in blocks:
        block, cost = lines.report.blocks[number], costs[number]
        size, seconds = cost.exchanged, cost.exchange_seconds
        back = block.reached and lines.request.mode == "train"
        again = back * cost.reduced_again[word(setting, block)]
        full = back and keeps(setting, block) == "full"
        twice = late and full and block.trained
        turns = back * (1 + twice)
        passed = turns - (twice and number in starts) / max(1, block.all_reduces)
        apart = setting.copies > 1 and block.role in ENCODER_SIDE
        sums = seen if apart else summed
        (visual if apart else gathered).add(sum(cost.gathered), sum(cost.gather_seconds))
        # Of more than what is looked at, a resampler's norms have made keys.
        looks = turns if block.source(**sizes) > block.looks(**sizes) else back
        sums.add(looks * size.looked, looks * seconds.looked)
        both = (1 + turns * again) * size.forward + passed * size.backward
        took = (1 + turns * again) * seconds.forward + passed * seconds.backward
        if setting.sequence_parallel and shares_tokens(block):
            # What runs again enters every layer again, but may end before the sum of the last.
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


def _starts(lines: Rooflines) -> set[int]:
    """Distinct blocks whose input nothing trained has made: its gradient is made for their own
    weights alone, and not where inputs have their turn."""
    blocks, order = lines.report.blocks, lines.report.order
    return {two for one, two in pairwise(order) if blocks[two].reached and not blocks[one].reached}


def _once(leaf: Leaf, group: int, blocks: Sequence[int]) -> Iterator[Collective]:
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
    groups = shared.groups(leaf.ends, setting.pipeline) if shared else set[int]()
    if shared and group in groups and len(groups) > 1:
        yield Collective(
            kind="all_reduce",
            purpose="gradients of an embedding that several stages read",
            group=len(groups),
            bytes=int(shared.bytes),
            seconds=shared.seconds,
        )
    yield _distances(leaf, group)
    count = chain.lines.cluster.count
    yield Collective(
        kind="all_reduce",
        purpose="loss",
        group=count,
        bytes=LOSS if count > 1 else 0,
        seconds=chain.lines.agreement,
    )


def _distances(leaf: Leaf, group: int) -> Collective:
    """Gradients of tables of distances of which a group has copies. They are small: their seconds
    are left out."""
    chain, setting = leaf.chain, leaf.chain.setting
    shards = setting.data if setting.zero else 1
    reading: dict[str, set[int]] = {}
    sizes: dict[str, int] = {}
    for number, held in enumerate(chain.groups(leaf.ends)):
        for stretch in held:
            for name, (block, table) in _tables(chain, stretch).items():
                reading.setdefault(name, set()).add(number)
                sizes[name] = block.stepped * first_share(table, shards) * MASTER
    copied = [name for name, groups in reading.items() if group in groups and len(groups) > 1]
    return Collective(
        kind="all_reduce",
        purpose="gradients of tables of distances that several stages read",
        group=max((len(reading[name]) for name in copied), default=1),
        bytes=sum(sizes[name] for name in copied),
        seconds=0.0,
    )


def _tables(chain: Chain, stretch: tuple[int, int]) -> dict[str, tuple[Block, Shapes]]:
    """Tables of distances that a stage has, by the stack that reads them."""
    report, (first, end) = chain.lines.report, stretch
    blocks = [report.blocks[number] for number in report.order[first:end]]
    return {
        one.name: (one, ((one.distances[0], one.distances[1] // chain.setting.tensor),))
        for one in blocks
        if one.distances[0]
    }


def _replicas(chain: Chain, held: Sequence[tuple[int, int]]) -> Iterator[Collective]:
    """Gradients and weights between replicas; seconds are those that compute does not hide."""
    lines, setting = chain.lines, chain.setting
    costs = lines.blocks(*setting.costed)
    report, times = lines.report, setting.micro_batches
    number = BYTES[lines.request.precision]
    blocks = _blocks(held, report.order)
    units = [(report.blocks[one], costs[one].shapes, gathers(report.blocks[one])) for one in blocks]
    again = 0
    if chain.shared:
        again = sum(chain.embeds_apart(*stretch) for stretch in held)
        units += [(chain.shared.owner, chain.shared.shapes, (True, True))] * again
    for stretch in held:
        units += [(*one, (True, True)) for one in _tables(chain, stretch).values()]
    seconds = sum(
        times * part.gathered + part.exchanged for part in (chain.parts[one] for one in blocks)
    )
    seconds += chain.shared.replicas if chain.shared and again else 0.0
    shards = setting.data if setting.zero else 1
    kinds = [(block, padded(shapes, shards), often) for block, shapes, often in units]
    brought = 0.0
    if setting.zero in (1, 2):
        brought = number * sum(size for block, size, often in kinds if block.trained and often[0])
    elif setting.zero == 3:
        brought = number * times * sum(size * sum(often) for _, size, often in kinds)
    scatters = MASTER * sum(size for block, size, _ in kinds if block.stepped)
    scatters *= times if setting.zero >= 2 else 1
    alone = MASTER * sum(single(shapes) for block, shapes, _ in units if block.stepped)
    moved = brought + scatters
    yield Collective(
        kind="all_reduce",
        purpose="gradients of replicas",
        group=setting.data,
        bytes=int(alone + (0 if setting.zero else scatters)),
        seconds=0.0 if setting.zero else seconds,
    )
    if setting.zero:
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
