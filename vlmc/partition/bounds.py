"""What no completion of a setting can beat. Bounds are admissible: never above what they bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import inf

from vlmc.hardware.device import BYTES
from vlmc.partition.chain import RESERVE, held
from vlmc.partition.costs import Rooflines
from vlmc.partition.part import Part
from vlmc.partition.plan import Schedule
from vlmc.partition.setting import Setting
from vlmc.partition.states import MASTER
from vlmc.runtime.parallel.plan_rules import OPTIMISERS


class Bounds:
    """Lower bounds for the settings of one search."""

    def __init__(self, lines: Rooflines, tokens: Rooflines | None = None) -> None:
        self.lines = lines
        self.tokens = tokens
        self.counts = _counts(lines)
        self.token_counts = _counts(tokens) if tokens else self.counts

    def base(self, base: Setting, schedules: Sequence[tuple[Schedule, int]]) -> float:
        """Of all completions of a base: nothing computed twice, no traffic between replicas."""
        replicated = base.placement == "replicated"
        key = base.micro_batch, base.tensor, base.sequence_parallel, replicated
        costs = self.lines.blocks(*key)
        if self.lines.request.mode == "serve":
            token = self.tokens.blocks(*key) if self.tokens else costs
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
        return (filling * (1 - 1 / groups) / chunks + busy) * (1 - 1e-12)

    def _answer(self, setting: Setting, first: Sequence[float], token: Sequence[float]) -> float:
        groups, times = setting.pipeline, setting.micro_batches
        total = self._sum(first)
        each = sum(count * one for count, one in zip(self.token_counts, token, strict=True))
        slowest = max(total / groups, self._max(first))
        turn = max(each / groups, *token)
        answer = total + (times - 1) * slowest
        answer += self.lines.request.generate * max(each, times * turn)
        return answer * (1 - 1e-12)

    def states(self, base: Setting) -> float:
        """Bytes that the fullest device holds at the least, of the model, whatever is sharded, and
        of a step's inputs."""
        lines, request = self.lines, self.lines.request
        replicated = base.placement == "replicated"
        costs = lines.blocks(base.micro_batch, base.tensor, base.sequence_parallel, replicated)
        size = BYTES[request.precision]
        sizes: list[float] = []
        for block, cost in zip(lines.report.blocks, costs, strict=True):
            each = size
            if request.mode == "train" and block.trained:
                each = 2 * MASTER + OPTIMISERS[request.optimiser] if block.stepped else MASTER
            shards = base.data if request.mode == "train" and request.zero in (None, 3) else 1
            if request.mode == "train" and request.zero in (1, 2) and block.trained:
                shards, each = 1, size  # what is computed with; all else may be shared out
            sizes.append(cost.parameters * each / shards)
        return self._sum(sizes) / base.pipeline + self._inputs(base)

    def fits(self, setting: Setting, parts: Sequence[Part]) -> bool:
        """Whether all devices together have room for what they hold at the least: the states and
        one micro-batch."""
        times = setting.micro_batches
        least = self._sum([one.weights + one.optimiser + one.cache * times for one in parts])
        least += max(
            self._sum([one.gradients for one in parts]), self._sum([one.saved for one in parts])
        )
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
        room = self.lines.cluster.device.memory_bytes / (1 + RESERVE) / chunks * (1 + 1e-9)
        most = [held(setting, group) for group in range(groups)]
        for count, one in zip(self.counts, parts, strict=True):
            work = times * (one.forward + one.backward) + one.tail
            fast = pace // work if work and pace < inf else float(count)
            states = one.weights + one.optimiser
            stages = 0.0
            for each in most:
                size = states + max(one.gradients, each * one.saved)
                if each < times or chunks > 1:
                    size = states + one.gradients + each * one.saved
                stages += min(fast, room // size if size else count)
            if stages * chunks < count:
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
