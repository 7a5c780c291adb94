"""What the blocks of the chain take under a setting, summed over stretches of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import accumulate, compress

from vlmc.ir.training import whole_weights
from vlmc.partition.carried import beside, outputs
from vlmc.partition.costs import ENCODER_SIDE, Rooflines
from vlmc.partition.part import Part, parts
from vlmc.partition.peaks import Peaks, sums
from vlmc.partition.schedule import most_held
from vlmc.partition.setting import Setting
from vlmc.partition.shared import EMBEDDING, shared_embedding
from vlmc.partition.states import held_states
from vlmc.runtime.parallel.plan_rules import puts_off

Levels = tuple[tuple[float, float, tuple[int, ...]], ...]


class Chain:
    """All blocks in their order under one setting. When serving, `lines` is of the prompts and
    `tokens` of the tokens of answers; `tokens` is None where those are not looked at. Both have
    the same chain, place by place, but may tell blocks apart differently."""

    def __init__(self, lines: Rooflines, setting: Setting, tokens: Rooflines | None = None) -> None:
        self.lines = lines
        self.setting = setting
        self.parts = parts(lines, setting)
        report, order = lines.report, lines.report.order
        self.length = len(order)
        self.encoder = encoder_length(lines)
        times = setting.micro_batches
        self._times()
        self.saved = self._sums(lambda part: part.saved)
        self.put_off = self._sums(lambda part: part.put_off)
        self.inputs = 0.0
        if report.mode == "train":
            self.inputs = times * float(report.inputs(**lines.sizes(setting.micro_batch)))
        self.cache = [times * size for size in self._sums(lambda part: part.cache)]
        self.embeds = _counts(report.blocks[block].name == EMBEDDING for block in order)
        self.embeds_again = _counts(bool(report.blocks[block].embedding) for block in order)
        self._states()
        self.shared = shared_embedding(lines, setting, self.parts)
        self.outputs = outputs(self.parts, order)
        self._beside = beside(self.parts, report)
        self.token_lines = tokens or lines
        self.token_parts = parts(tokens, setting) if tokens else self.parts
        self.token_order = self.token_lines.report.order
        row = [part.forward for part in self.token_parts]
        self.token = list(accumulate(map(row.__getitem__, self.token_order), initial=0.0))
        self.features = self.outputs[self.encoder - 1] if self.encoder else 0.0
        roles = [report.blocks[block].role for block in order]
        self.looks = _counts(
            number == self.encoder - 1 or role == "fusion" for number, role in enumerate(roles)
        )
        self.room = lines.cluster.device.memory_bytes
        self.held = [self._held(group) for group in range(setting.pipeline)]
        self.fed = _counts(report.blocks[block].reached for block in order)

    @property
    def levels(self) -> Levels:
        """Seconds of a message (of prompts, of tokens of answers) and the places of cuts over which
        none takes longer, the end of the chain last."""
        setting, known = self.setting, self.lines.levels
        first = 1
        if setting.placement in ("stage_0", "replicated"):
            first = max(1, self.encoder)
        late = puts_off(setting.schedule, setting.pipeline)
        key = (first, *setting.costed, late)
        if key not in known:
            places = range(first, self.length)
            known[key] = _levels(first, [*map(self.send, places)], [*map(self.send_token, places)])
        return known[key]

    def carried(self, end: int) -> float:
        """Bytes of a message over a cut: what the block before it gives, and what blocks behind it
        still read of what was made further up."""
        more = sum(size for made, last, size in self._beside if made < end <= last)
        return self.outputs[end - 1] + more

    def answered(self, end: int) -> bool:
        """Whether gradients come over a cut the other way when training: not where nothing before
        it is trained, unless the schedule puts gradients off."""
        late = puts_off(self.setting.schedule, self.setting.pipeline)
        return late or self.fed[end] > 0

    def returned(self, end: int) -> float:
        """Bytes of those."""
        return self.carried(end) if self.answered(end) else 0.0

    def send(self, end: int) -> float:
        """Seconds of a message over a cut; when training, the mean of both ways."""
        count = self.lines.cluster.count
        one = self.lines.send(self.carried(end), count)
        if self.lines.request.mode == "serve":
            return one
        back = self.returned(end)
        return (one + (self.lines.send(back, count) if back else 0.0)) / 2

    def carried_token(self, end: int) -> float:
        """As `carried`, for the tokens of answers; what they look at lies in caches."""
        return self.token_parts[self.token_order[end - 1]].output

    def send_token(self, end: int) -> float:
        """As `send`, for the tokens of answers."""
        return self.lines.send(self.carried_token(end), self.lines.cluster.count)

    def _sums(self, of: Callable[[Part], float]) -> list[float]:
        return sums(self.parts, self.lines.report.order, of)

    def _times(self) -> None:
        """Seconds of a micro-batch, and of a step."""
        self.forward = self._sums(lambda part: part.forward)
        self.backward = self._sums(lambda part: part.backward)
        self.late = self._sums(lambda part: part.weights_late)
        self.tail = self._sums(lambda part: part.tail)
        times = self.setting.micro_batches
        self.work = [
            times * (forward + backward) + tail
            for forward, backward, tail in zip(self.forward, self.backward, self.tail, strict=True)
        ]

    def _states(self) -> None:
        """What is held of weights, gradients and the optimiser."""
        self.weights = self._sums(lambda part: part.weights)
        self.gradients = self._sums(lambda part: part.gradients)
        self.waiting = self._sums(lambda part: part.waiting)
        self.optimiser = self._sums(lambda part: part.optimiser)
        loss = None
        if self.lines.report.mode == "train":
            sizes = self.lines.sizes(self.setting.micro_batch)
            loss = float(self.lines.report.loss_peak(**sizes))
        order, tied = self.lines.report.order, bool(self.embeds_again[-1])
        self.peaks = Peaks(self.parts, order, self.saved, self.gradients, loss, tied=tied)
        self.again_peaks = [self.parts[block].again_peak for block in order]
        self.buffers = [self.parts[block].buffers for block in order]
        self.copy = self._embedding()

    def _embedding(self) -> tuple[float, float, float]:
        """Weights, gradients and the optimiser's state of what a tied head, or the start of a
        decoder, has a copy of on another stage than the embedding's."""
        report = self.lines.report
        tensors = next((block.embedding for block in report.blocks if block.embedding), ())
        owner = next((block for block in report.blocks if block.name == EMBEDDING), None)
        if owner is None or not tensors:
            return 0.0, 0.0, 0.0
        held = held_states(self.lines, self.setting, owner, sum(tensors), tensors)
        return held.weights, held.gradients + held.waiting, held.optimiser

    def embeds_apart(self, first: int, end: int) -> bool:
        """Whether a stretch reads the embedding and does not hold it."""
        return (
            self.embeds_again[end] > self.embeds_again[first]
            and self.embeds[end] == self.embeds[first]
        )

    def scheduled(self, setting: Setting) -> Chain:
        """The same under a setting with another schedule; sums are shared, but for what schedules
        hold differently."""
        twin = copy(self)
        twin.setting = setting
        if any(whole_weights(one.schedule, one.pipeline) for one in (setting, self.setting)):
            twin.parts = parts(self.lines, setting)
            twin._times()
            twin._states()
        twin.held = [twin._held(group) for group in range(setting.pipeline)]
        return twin

    def _held(self, group: int) -> float:
        """The most micro-batches of one of its stages that a group holds."""
        setting = self.setting
        if self.lines.request.mode == "serve":
            return 1.0
        return held(setting, group)

    def largest(self, cuts: Iterable[int]) -> float:
        """Bytes of the largest message over any of these cuts."""
        return max(map(self.carried, cuts), default=0.0)

    def busiest(self, ends: Sequence[int], weights: Sequence[float] | None = None) -> int:
        """The pipeline group with most to do; `weights`: sums over the chain, of what."""
        sums, held = weights or self.work, self.groups(ends)
        return max(
            range(len(held)),
            key=lambda group: sum(sums[end] - sums[first] for first, end in held[group]),
        )

    def groups(self, ends: Sequence[int]) -> list[list[tuple[int, int]]]:
        """By pipeline group, the stretches that it holds."""
        starts = (0, *ends)
        pipeline = self.setting.pipeline
        return [
            [(starts[stage], ends[stage]) for stage in range(group, len(ends), pipeline)]
            for group in range(pipeline)
        ]


def _counts(which: Iterable[bool]) -> list[int]:
    """How many there are before each place of the chain."""
    return [0, *accumulate(map(int, which))]


def held(setting: Setting, group: int) -> float:
    """The most micro-batches of one of its stages that a group holds, when training."""
    if setting.pipeline == 1:
        return 1.0
    most = most_held(
        setting.schedule, group, setting.pipeline, setting.micro_batches, setting.chunks
    )
    return (most or setting.micro_batches * setting.chunks) / setting.chunks


def _levels(first: int, sends: Sequence[float], token_sends: Sequence[float]) -> Levels:
    """`first`: the first place of a cut, to which the first of `sends` belongs."""
    found: dict[tuple[int, ...], tuple[float, float, tuple[int, ...]]] = {}
    end = first + len(sends)
    for size in sorted(set(sends)):
        for token in sorted(set(token_sends)):
            kept = (
                one <= size and two <= token for one, two in zip(sends, token_sends, strict=True)
            )
            places = (*compress(range(first, end), kept), end)
            found.setdefault(places, (size, token, places))
    return tuple(found.values())


def encoder_length(lines: Rooflines) -> int:
    """Blocks of encoder and adapter at the start of the chain."""
    report = lines.report
    roles = [report.blocks[block].role for block in report.order]
    return next((at for at, role in enumerate(roles) if role not in ENCODER_SIDE), len(roles))
