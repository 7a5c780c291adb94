"""Prints predicted against measured time of answers of all the systems, on this processor.

    python benchmarks/serve_time.py [--threads N] [--device host.yaml] [SYSTEM ...]

The processor is calibrated first, as `vlmc bench --calibrate` does; `--device` names a device file
in place of that. Designs are those of step_time.py (11 to 33 million parameters, fp32), questions
have one image. Predictions are what `vlmc plan` shows for the workload on one such device; measured
are the calls that a session makes of its engine (eager): images encoded and prompts read until the
first tokens are known, then a step for each further token. Questions take turns, and medians are
compared; bytes of the KV cache must be equal. Exits with 1 where they are not, or where the median
error of times is above 15%.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from step_time import asked, designed, off_by, processor

from vlmc.analysis.analyse import analyse
from vlmc.analysis.report import GraphReport
from vlmc.builder.model import instantiate
from vlmc.hardware.cluster import Cluster
from vlmc.hardware.device import Device
from vlmc.ir import Arch
from vlmc.partition.plan import Predicted
from vlmc.partition.request import Request
from vlmc.partition.search import find
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.engines.engine import Row

MEDIAN = 0.15
ROUNDS = 5
"""Turns of each question."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Questions that are answered at once, each with an image."""

    system: str
    batch: int
    prompt: int
    """Words of each."""
    answer: int
    """Tokens of each."""

    def __str__(self) -> str:
        return f"{self.system:14} {self.batch} x {self.prompt:3} words"


def cases(systems: Sequence[str]) -> Iterator[Case]:
    """Three of each system."""
    for system in systems:
        for batch, prompt in ((1, 32), (2, 96), (8, 48)):
            yield Case(system=system, batch=batch, prompt=prompt, answer=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds."""

    first: float
    token: float | None
    """None of a design that answers in one pass."""
    answer: float
    """All of it."""
    cache: int
    """Bytes of keys and values."""


@dataclass
class Runner:
    """A model with the engine that sessions run it by."""

    arch: Arch
    design: Design
    engine: EagerEngine
    reports: tuple[GraphReport, GraphReport | None]
    taken: dict[Case, list[Times]] = field(default_factory=dict)

    @classmethod
    def of(cls, system: str) -> Runner:
        """That of a system, with values."""
        torch.manual_seed(0)
        spec, arch = designed(system)
        model = instantiate(arch, device="cpu").eval().requires_grad_(False)
        design = describe(spec, arch)
        decode = analyse(arch, mode="decode", precision="fp32") if design.generates else None
        reports = analyse(arch, mode="prefill", precision="fp32"), decode
        return cls(arch, design, EagerEngine(model, design), reports)

    def pixels(self, images: int) -> Any:
        """What the vision part takes."""
        dims = self.arch.node("encoder").inputs[0].type.dims[1:]
        shape = [int(dim) for dim in dims if isinstance(dim, int)]
        still = shape[1:] if len(shape) == 4 else shape  # not as many frames as a video may have
        return np.random.default_rng(0).standard_normal((images, *still)).astype(np.float32)

    def row(self, case: Case, feature: Any) -> Row:
        """A question: the image, then words."""
        inside = self.design.serving in ("sequence", "encoder_decoder")
        count = self.design.positions[0] if inside else 0
        ids = np.full(count + case.prompt, 7, np.int64)
        visual = np.arange(len(ids)) < count
        crossing = self.design.serving == "cross_attention"
        seen = np.ones((len(ids), 1), np.bool_) if crossing else None
        return Row(ids=ids, visual=visual, features=(feature,), seen=seen)

    def answered(self, case: Case) -> Times:
        """Asks once."""
        engine, pixels = self.engine, self.pixels(case.batch)
        begun = time.perf_counter()
        rows = [self.row(case, one) for one in engine.encode_images(pixels)]
        if not self.design.generates:
            engine.answer(rows)
            whole = time.perf_counter() - begun
            return Times(first=whole, token=None, answer=whole, cache=0)
        state, logits = engine.prefill(rows)
        read = time.perf_counter()
        steps: list[float] = []
        for _ in range(case.answer - 1):
            before = time.perf_counter()
            logits = engine.step(state, logits.argmax(-1))
            steps.append(time.perf_counter() - before)
        answer = time.perf_counter() - begun
        if self.design.serving != "encoder_decoder":  # whose decoder began with another token
            engine.step(state, logits.argmax(-1))  # a plan's cache has room for the last one
        return Times(
            first=read - begun, token=statistics.median(steps), answer=answer, cache=_bytes(state)
        )

    def predicted(self, case: Case, card: Device) -> Predicted:
        """As a plan for one device says it."""
        generates = self.design.generates
        request = Request(
            mode="serve",
            batch=case.batch,
            micro_batch=case.batch,
            text=case.prompt + case.answer * generates,
            generate=case.answer * generates,
            images=1,
            tokens=self.arch.tokens.per_image,
            precision="fp32",
        )
        cluster = Cluster(device=card, count=1, per_node=1, node_gbps=0, network_gbps=0)
        found = find(self.reports[0], cluster, request, decode=self.reports[1]).plan.predicted
        assert found is not None
        return found


def _bytes(state: Any) -> int:
    """Of all keys and values that a generation keeps."""
    own = [(layer.keys, layer.values) for layer in state.cache.layers]
    return sum(one.nbytes for pair in (*own, *state.memory) for one in pair)


def measured(runners: dict[str, Runner], every: Sequence[Case]) -> dict[Case, Times]:
    """Medians of each question, the first turn left out."""
    taken: dict[Case, list[Times]] = {case: [] for case in every}
    for _ in range(ROUNDS + 1):
        for case in every:
            taken[case].append(runners[case.system].answered(case))
    return {case: _median(times[1:]) for case, times in taken.items()}


def _median(times: Sequence[Times]) -> Times:
    tokens = [one.token for one in times if one.token is not None]
    return Times(
        first=statistics.median(one.first for one in times),
        token=statistics.median(tokens) if tokens else None,
        answer=statistics.median(one.answer for one in times),
        cache=times[0].cache,
    )


def compared(
    found: dict[Case, Times],
    runners: dict[str, Runner],
    card: Device,
    say: Callable[[str], None],
) -> int:
    """Prints both sides; the exit status."""
    errors: dict[str, list[float]] = {"first token": [], "each token": [], "images/s": []}
    unlike = 0
    for case, taken in found.items():
        plan = runners[case.system].predicted(case, card)
        sides = {
            "first token": (plan.first_token_seconds, taken.first),
            "each token": (plan.token_seconds, taken.token),
            "images/s": (plan.images_per_second, case.batch / taken.answer),
        }
        for name, (expected, found_) in sides.items():
            if expected is None or found_ is None:
                continue
            errors[name].append(expected / found_ - 1)
            unit = "  " if name == "images/s" else "ms"
            scale = 1 if name == "images/s" else 1e3
            say(
                f"{case!s} {name:11} {expected * scale:9.2f} {unit} {found_ * scale:9.2f} {unit} "
                f"{errors[name][-1]:+7.1%}"
            )
        cache = sum(one.cache for one in plan.memory)
        unlike += cache != taken.cache
        say(f"{case!s} KV cache    {cache:9} B  {taken.cache:9} B")
    for name, of in errors.items():
        if of:
            say(f"{name}: {off_by(of, 'figures')}")
    every = [one for of in errors.values() for one in of]
    say(f"all: {off_by(every, 'figures')}; {unlike} KV caches of other sizes")
    return 0 if statistics.median(map(abs, every)) <= MEDIAN and not unlike else 1


def main(words: Sequence[str], say: Callable[[str], None] = print) -> int:
    """Asks some systems, or all of them; the exit status."""
    options = asked(words, __doc__)
    runners = {system: Runner.of(system) for system in options.systems}
    card = processor(options, say)
    return compared(measured(runners, list(cases(options.systems))), runners, card, say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
