"""Seconds and bytes of one block: rooflines, collectives, what is held.

A block's time is the sum over its kinds of operators of the larger of compute and memory traffic,
each at the efficiency of one call (Williams et al., 2009). Collectives take the bandwidth of a ring
and the latency of a tree (Thakur et al., 2005).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd, log2

from vlmc.analysis.report import Block, GraphReport, Phase
from vlmc.hardware.cluster import Cluster
from vlmc.hardware.efficiency import Kind
from vlmc.ir import Role
from vlmc.partition.request import Request
from vlmc.partition.shards import Shapes, shapes_of
from vlmc.partition.work import Moments, Sums, Work, gathered, kept_bytes, logits, summed, work_of

_AGAIN: tuple[Phase, Phase] = ("again_selective", "again_full")
ENCODER_SIDE: tuple[Role, ...] = ("encoder", "select", "adapter")
LOSS = 8
"""Bytes of a loss."""
OVERLAP = 0.9
"""Share of a block's time behind which gathers and gradient exchanges of FSDP hide: the two compete
for memory and for a few multiprocessors. Assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """One block at one tensor degree and one micro-batch. Seconds and bytes of one device."""

    forward: float
    backward_input: float
    backward_weight: float
    again: tuple[float, float, float]
    """To compute again what checkpointing (none, selective, full) left out."""
    reduced_again: tuple[float, float, float]
    """Share of `exchanged` in the forward pass that is then exchanged again."""
    exchanged: Sums
    """Bytes of activations and gradients that tensor parallelism sums up, whole tensors."""
    exchange_seconds: Sums
    """Of those; `forward` and `backward_input` include them."""
    gathered: tuple[int, int]
    """Bytes that are put together, in the forward and in the backward pass: logits, and sequences
    where they stop being shared out."""
    gather_seconds: tuple[float, float]
    """Of those; `forward` and `backward_input` include them."""
    parameters: int
    """That the device holds of the block, before data parallelism shards them."""
    shapes: Shapes
    """Of those."""
    saved: tuple[float, float, float]
    """Without checkpointing, selective, full."""
    late: float
    """Gradients that wait for the weights' turn, where a schedule puts it off."""
    output: float
    looks: float
    peak_forward: float
    """Over what is saved."""
    climb: Moments
    """Over what is saved."""
    cache: float


class Rooflines:
    """The costs of a report's blocks on a cluster, each worked out once."""

    def __init__(
        self, report: GraphReport, cluster: Cluster, request: Request, text: int | None = None
    ) -> None:
        """`text`: text tokens of a sequence where they differ from the request's."""
        self.report = report
        self.cluster = cluster
        self.request = request
        self.number = request.precision
        self.text = text or request.text
        self.levels: dict[
            tuple[int, int, int, bool, int, bool],
            tuple[tuple[float, float, tuple[int, ...]], ...],
        ] = {}
        """By the first place of a cut, micro-batch, tensor degree, sequence parallelism, the
        encoder's tensor degree and whether gradients are put off: see Chain.levels."""
        self._read: dict[int, list[Work]] = {}
        self._costs: dict[tuple[int, int, bool, int], tuple[BlockCost, ...]] = {}
        self._updates: dict[tuple[int, float], float] = {}

    def blocks(
        self, micro_batch: int, tensor: int, sequence_parallel: bool, vision: int
    ) -> tuple[BlockCost, ...]:
        """By distinct block. `vision`: ranks over which the encoder's side is split; where they are
        fewer than `tensor`, it has copies, which share the images out."""
        key = (micro_batch, tensor, sequence_parallel, vision)
        if key not in self._costs:
            if micro_batch not in self._read:
                self._read[micro_batch] = [
                    work_of(block, self.sizes(micro_batch), self.request.text)
                    for block in self.report.blocks
                ]
            works = self._read[micro_batch]
            images = self._images(works, micro_batch, tensor // vision)
            self._costs[key] = tuple(
                self._cost(
                    block, work, micro_batch, tensor, sequence_parallel, vision,
                    images.get(number, 0.0),
                )
                for number, (block, work) in enumerate(zip(self.report.blocks, works, strict=True))
            )  # fmt: skip
        return self._costs[key]

    @property
    def agreement(self) -> float:
        """Seconds in which all devices add up the loss of a step, once they have done with it."""
        ranks = self.cluster.count if self.request.mode == "train" else 1
        return self.all_reduce(LOSS, ranks, ranks)

    def _images(self, works: Sequence[Work], micro_batch: int, copies: int) -> dict[int, float]:
        """Bytes of visual tokens that a tensor group puts together, each copy of the encoder with a
        share of the images, by the block that they are counted with: the first, since all that sees
        stands on one stage."""
        report, images = self.report, micro_batch * self.request.images
        seeing = [one for one in report.order if report.blocks[one].role in ENCODER_SIDE]
        made = [works[one].output for one in seeing if works[one].output]
        if copies == 1 or not made or not images:
            return {}
        first = report.order[0]
        whole = made[-1] * ceil(images / copies) * copies / images
        return {first: whole / report.order.count(first)}

    def asked(self, request: Request) -> Rooflines:
        """The same for another request."""
        return Rooflines(self.report, self.cluster, request, self.text)

    def flops(self, micro_batch: int) -> float:
        """Of the whole design, for a micro-batch, nothing computed twice."""
        self.blocks(micro_batch, 1, False, 1)
        each = [
            sum(call.flops for call in work.calls if call.phase not in _AGAIN)
            for work in self._read[micro_batch]
        ]
        return sum(each[block] for block in self.report.order)

    def update(self, number: int, share: float) -> float:
        """Seconds in which the optimiser updates `share` of each parameter of a distinct block."""
        if (number, share) not in self._updates:
            block, device = self.report.blocks[number], self.cluster.device
            self._updates[number, share] = sum(
                device.update_seconds(size * share, self.request.optimiser)
                for size in block.tensors or (block.parameters,)
            )
        return self._updates[number, share]

    def sizes(self, micro_batch: int) -> dict[str, int]:
        """What the polynomials are evaluated at."""
        request = self.request
        return {
            "batch": micro_batch,
            "text": self.text,
            "images": request.images,
            "tokens": request.tokens or self.report.tokens,
            "answer": request.generate,
        }

    def _cost(
        self,
        block: Block,
        work: Work,
        micro_batch: int,
        tensor: int,
        sequence_parallel: bool,
        vision: int,
        visual: float,
    ) -> BlockCost:
        seeing, copies = block.role in ENCODER_SIDE, tensor // vision
        images = micro_batch * self.request.images
        share = ceil(images / copies) / images if seeing and images else 1.0
        degree = divided(block, vision if seeing else tensor)
        whole = tensor if sequence_parallel and shares_tokens(block) else 1
        phases: dict[Phase, float] = {}
        hooks = self.cluster.device.efficiency.again_us * 1e-6
        part = largest_share(block, degree)
        ways = float(1 / part)
        for call in work.calls:
            by = (ways if call.split else whole) / share
            flops, size = call.flops / by / call.count, call.bytes / by / call.count
            seconds = self._roofline(flops, size, call.kind)
            seconds += hooks if call.phase in _AGAIN else 0.0
            phases[call.phase] = phases.get(call.phase, 0.0) + call.count * seconds
        sums = Sums(0.0, 0.0, 0.0)
        if degree > 1:
            sums = Sums(*(share * size for size in summed(block, work)))
        exchange = self._exchange(block, sums, degree)
        ahead, back = gathered(block, work) if sequence_parallel else (0.0, 0.0)
        ahead += visual + (logits(block, work) * float(part * degree) if degree > 1 else 0.0)
        ranks = copies if seeing else tensor
        waits = self.gather(ahead, ranks, tensor), self.gather(back, ranks, tensor)
        forward = phases.get("forward", 0.0) + exchange.forward + waits[0]
        backward = phases.get("backward_input", 0.0) + waits[1]
        backward += exchange.backward + exchange.looked
        shares = [one / max(1, block.all_reduces) for one in block.all_reduces_again]
        again = [
            phases.get(one, 0.0) + share * exchange.forward
            for one, share in zip(_AGAIN, shares, strict=True)
        ]
        kept = kept_bytes(block, work, float(part), whole)
        sent = tensor if sequence_parallel and sends_shares(block) else 1
        return BlockCost(
            forward=forward,
            backward_input=backward if block.reached else 0.0,
            backward_weight=phases.get("backward_weight", 0.0) if block.trained else 0.0,
            again=(0.0, again[0], again[1]),
            reduced_again=(0.0, shares[0], shares[1]),
            exchanged=sums,
            exchange_seconds=exchange,
            gathered=(int(ahead), int(back) if block.reached else 0),
            gather_seconds=(waits[0], waits[1] if block.reached else 0.0),
            parameters=ceil(block.split_parameters * part)
            + block.parameters
            - block.split_parameters,
            shapes=shapes_of(block, degree),
            late=work.late * share * (1 - float(block.saved.late_split * (1 - part))),
            saved=(kept[0] * share, kept[1] * share, kept[2] * share)
            if block.reached
            else (0.0, 0.0, 0.0),
            output=work.output / sent,
            looks=work.looks,
            peak_forward=kept[3] * share,
            climb=tuple((size * share, made) for size, made in kept[4]),
            cache=work.cache / degree,
        )

    def _exchange(self, block: Block, sums: Sums, degree: int) -> Sums:
        """Seconds of sums, which come one by one."""
        calls = block.all_reduces or 1
        numbers = calls, calls, 1
        return Sums(
            *(
                number * self.all_reduce(size / number, degree, degree)
                for size, number in zip(sums, numbers, strict=True)
            )
        )

    def _roofline(self, flops: float, size: float, kind: Kind) -> float:
        device, serving = self.cluster.device, self.request.mode == "serve"
        work = device.seconds(flops, size, self.number, kind, serving=serving)
        own = device.efficiency.serving if serving else None
        return work + (own or device.efficiency).call_us * 1e-6

    def all_reduce(self, size: float, ranks: int, span: int) -> float:
        """Seconds until each of `ranks` has the sum of all their tensors of `size` bytes."""
        return 2 * self.gather(size, ranks, span)

    def gather(self, size: float, ranks: int, span: int) -> float:
        """Seconds until each of `ranks` has the whole tensor of `size` bytes of which it holds its
        part; a reduce-scatter takes the same. `span`: ranks from the first to the last of them."""
        if ranks == 1 or not size:
            return 0.0
        rate = self.cluster.gbps(span) * 1e9
        return (ranks - 1) / ranks * size / rate + ceil(log2(ranks)) * self.cluster.latency

    def send(self, size: float, ranks: int) -> float:
        """Seconds of a message of `size` bytes to the next group of a pipeline over `ranks`."""
        return size / (self.cluster.gbps(ranks) * 1e9) + self.cluster.latency


def divided(block: Block, tensor: int) -> int:
    """The degree at which a block runs where its neighbours run at `tensor`: 1 where it cannot be
    split at all; then each device runs all of it."""
    return 1 if unsplit(block) else tensor


def largest_share(block: Block, degree: int) -> Fraction:
    """Of what tensor parallelism splits of a block, the most that one of `degree` devices has:
    words of a vocabulary need not come out even."""
    if block.role != "head" or degree == 1:
        return Fraction(1, degree)
    words = block.tensor_limits[0]
    return Fraction(ceil(words / degree), words)


def sends_shares(block: Block) -> bool:
    """Whether sequences leave a block shared out over the tensor group, where they are at all: from
    a language model's embeddings to its head."""
    return block.role == "language" or (block.role == "fusion" and "*" in block.name)


def shares_tokens(block: Block) -> bool:
    """Whether a block works on a rank's share of the tokens wherever these do not read each other:
    not embeddings, and what stands between two stacks."""
    return sends_shares(block) and ("*" in block.name or block.name.endswith(".end"))


def unsplit(block: Block) -> bool:
    """Whether no degree of tensor parallelism divides the block."""
    return all(limit == 1 for limit in block.tensor_limits)


def splits(blocks: tuple[Block, ...]) -> int:
    """The greatest degree that divides each of the blocks that can be split, but for words."""
    parts = (block for block in blocks if not unsplit(block) and block.role != "head")
    limits = [limit for block in parts for limit in block.tensor_limits]
    return gcd(*limits) if limits else 0
