"""What no completion of a setting can beat. Bounds are admissible: never above what they bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import inf

from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import Block
from vlmc.hardware.device import BYTES
from vlmc.ir.training import OPTIMISERS
from vlmc.partition.chain import held
from vlmc.partition.costs import Rooflines
from vlmc.partition.part import Part
from vlmc.partition.plan import Schedule
from vlmc.partition.room import RESERVE, moments_of
from vlmc.partition.schedule import Moments
from vlmc.partition.setting import Setting
from vlmc.partition.space import KEEPS, kinds
from vlmc.partition.states import MASTER


class Bounds:
    """Lower bounds for the settings of one search."""

    def __init__(self, lines: Rooflines, tokens: Rooflines | None = None) -> None:
        self.lines = lines
        self.tokens = tokens
        self.counts = _counts(lines)
        self.token_counts = _counts(tokens) if tokens else self.counts
        words = kinds(lines)
        self._words = [
            [KEEPS.index(one) for one in words.get(block.name, ("none",))] if block.reached else [0]
            for block in lines.report.blocks
        ]
        self._rising = [
            words if all(_rises(_saved(block, word)) for word in words) else []
            for block, words in zip(lines.report.blocks, self._words, strict=True)
        ]
        self._saved: dict[int, float] = {}
        self._too_many: dict[int, int] = {}
        """By devices of a replica, the smallest micro-batch that is known to be."""

    def base(self, base: Setting, schedules: Sequence[tuple[Schedule, int]]) -> float:
        """Of all completions of a base: nothing computed twice, no traffic between replicas."""
        costs = self.lines.blocks(*base.costed)
        if self.lines.request.mode == "serve":
            token = self.tokens.blocks(*base.costed) if self.tokens else costs
            return self._answer(
                base, [one.forward for one in costs], [one.forward for one in token]
            )
        once = [one.forward + one.backward_input + one.backward_weight for one in costs]
        late = [one.backward_weight for one in costs]
        return min(
            (
                self._step(base, schedule, chunks, once, late, [0.0] * len(once))
                for schedule, chunks in schedules
            ),
            default=float("inf"),
        )

    def setting(
        self, setting: Setting, parts: Sequence[Part], tokens: Sequence[Part] | None = None
    ) -> float:
        """Of all cuts under a setting."""
        if self.lines.request.mode == "serve":
            return self._answer(
                setting,
                [one.forward for one in parts],
                [one.forward for one in tokens or parts],
            )
        return self._step(
            setting,
            setting.schedule,
            setting.chunks,
            [one.forward + one.backward for one in parts],
            [one.weights_late for one in parts],
            [one.tail for one in parts],
        )

    def _step(
        self,
        setting: Setting,
        schedule: Schedule,
        chunks: int,
        once: Sequence[float],
        late: Sequence[float],
        tail: Sequence[float],
    ) -> float:
        """Perfect balance, or one block to a stage; messages take no time."""
        groups, times = setting.pipeline, setting.micro_batches
        total = self._sum(once)
        work = [times * one + two for one, two in zip(once, tail, strict=True)]
        busy = max(self._sum(work) / groups, chunks * self._max(work))
        filling = max(0.0, total - 2 * self._sum(late)) if schedule == "zero_bubble" else total
        busy += self.lines.agreement
        return (filling * (1 - 1 / groups) / chunks + busy) * (1 - 1e-12)

    def _answer(self, setting: Setting, first: Sequence[float], token: Sequence[float]) -> float:
        groups, times = setting.pipeline, setting.micro_batches
        total = self._sum(first)
        each = sum(count * one for count, one in zip(self.token_counts, token, strict=True))
        slowest = max(total / groups, self._max(first))
        turn = max(each / groups, *token)
        answer = total + (times - 1) * slowest
        answer += self.lines.request.steps * max(each, times * turn)
        return answer * (1 - 1e-12)

    def states(self, base: Setting) -> float:
        """Bytes that the fullest device holds at the least, of the model and of one micro-batch,
        whatever is sharded, and of a step's inputs."""
        lines, request = self.lines, self.lines.request
        costs = lines.blocks(*base.costed)
        size = BYTES[request.precision]
        training = request.mode == "train"
        shards = base.data if training and request.zero in (None, 3) else 1
        kept = training and request.zero in (1, 2)
        sizes: list[float] = []
        gradients: list[float] = []
        for block, cost in zip(lines.report.blocks, costs, strict=True):
            each, made = size / shards, 0.0
            if kept and block.trained:
                each = size  # what is computed with; all else may be shared out
            elif training and block.trained:
                state = OPTIMISERS[request.optimiser] if block.stepped else 0
                each, made = (MASTER + state) / shards, block.stepped * MASTER / shards
            sizes.append(cost.parameters * each + cost.cache * base.micro_batches)
            gradients.append(cost.parameters * made)
        saved = [
            min(cost.saved[word] for word in words)
            for cost, words in zip(costs, self._words, strict=True)
        ]
        least = self._sum(sizes) + max(self._sum(gradients), self._sum(saved))
        return least / base.pipeline + self._inputs(base)

    def too_many(self, base: Setting) -> bool:
        """Whether micro-batches of such a size are ruled out before anything is known of blocks:
        inputs alone are too much for a device, or what is saved of one at the least for all of a
        replica's devices; then none of them keeps a larger one."""
        devices, size = base.pipeline * base.tensor, base.micro_batch
        room = self.lines.cluster.device.memory_bytes
        if size >= self._too_many.get(devices, size + 1) or self._inputs(base) > room:
            return True
        if self._least_saved(size) <= room * devices:
            return False
        self._too_many[devices] = size
        return True

    def _least_saved(self, micro_batch: int) -> float:
        """Bytes of all blocks but those that may save less of more sequences; what a degree divides
        is divided by it at most."""
        if micro_batch not in self._saved:
            sizes = self.lines.sizes(micro_batch)
            blocks = zip(self.counts, self.lines.report.blocks, self._rising, strict=True)
            self._saved[micro_batch] = sum(
                count * min((float(_saved(block, word)(**sizes)) for word in words), default=0.0)
                for count, block, words in blocks
            )
        return self._saved[micro_batch]

    def fits(self, setting: Setting, parts: Sequence[Part]) -> bool:
        """Whether all devices together have room for what they hold at the least: the states and
        one micro-batch."""
        times = setting.micro_batches
        least = self._sum([one.weights + one.optimiser + one.cache * times for one in parts])
        # Copies of weights may leave as gradients come.
        made = [one.gradients - one.released for one in parts]
        least += max(self._sum(made), self._sum([one.saved for one in parts]))
        least += self._inputs(setting) * setting.pipeline
        return least * (1 + RESERVE) <= self.lines.cluster.device.memory_bytes * setting.pipeline

    def possible(self, setting: Setting, parts: Sequence[Part], under: float) -> bool:
        """Whether the stages could hold all blocks: of all kinds, as far as memory goes; of each,
        were there no others, as many as memory allows, and as `under` seconds a step allow."""
        if not self.fits(setting, parts):
            return False
        if self.lines.request.mode == "serve":
            return True
        groups, chunks, times = setting.pipeline, setting.chunks, setting.micro_batches
        once = self._sum([one.forward + one.backward for one in parts])
        if setting.schedule == "zero_bubble":
            once = max(0.0, once - 2 * self._sum([one.weights_late for one in parts]))
        pace = (under - once * (1 - 1 / groups) / chunks) / chunks * (1 + 1e-9)
        room = self.lines.cluster.device.memory_bytes / (1 + RESERVE) * (1 + 1e-9)
        most = [_held_of_all(setting, group) for group in range(groups)]
        for count, one in zip(self.counts, parts, strict=True):
            work = times * (one.forward + one.backward) + one.tail
            fast = pace // work if work and pace < inf else float(count)
            states = one.weights + one.optimiser
            total = 0.0
            for each in most:
                size = states + max(one.gradients - one.released, each * one.saved)
                if each < times or chunks > 1:
                    size = states + one.gradients + each * one.saved
                total += min(fast * chunks, room // size if size else count)
            if total < count:
                return False
        return True

    def _inputs(self, setting: Setting) -> float:
        """Bytes of all micro-batches of a step, which every device is given when training."""
        if self.lines.request.mode == "serve":
            return 0.0
        sizes = self.lines.sizes(setting.micro_batch)
        return setting.micro_batches * float(self.lines.report.inputs(**sizes))

    def _sum(self, values: Sequence[float]) -> float:
        return sum(count * value for count, value in zip(self.counts, values, strict=True))

    def _max(self, values: Sequence[float]) -> float:
        return max(value for count, value in zip(self.counts, values, strict=True) if count)


def _counts(lines: Rooflines) -> list[int]:
    """How often each distinct block stands in the chain."""
    counts = Counter(lines.report.order)
    return [counts[number] for number in range(len(lines.report.blocks))]


def _held_of_all(setting: Setting, group: int) -> float:
    """The most micro-batches that a group holds of each of its stages at once."""
    if setting.chunks == 1:
        return held(setting, group)
    return _at_once(moments_of(setting, group))


@cache
def _at_once(found: Moments) -> int:
    return max(min(counts) for _, counts in found)


def _saved(block: Block, word: int) -> Polynomial:
    """Bytes of a micro-batch that a block saves, by the place of a word among KEEPS."""
    return (block.saved.none, block.saved.selective, block.saved.full)[word]


def _rises(polynomial: Polynomial) -> bool:
    """Whether it is surely no less for more sequences."""
    return all(coefficient > 0 for _, coefficient in polynomial)
