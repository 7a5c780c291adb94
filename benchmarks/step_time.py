"""Prints predicted against measured time of training steps of all the systems, on this processor.

    python benchmarks/step_time.py [--threads N] [--device host.yaml] [SYSTEM ...]

The processor is calibrated first, as `vlmc bench --calibrate` does; `--device` names a device file
in place of that. Each line is a design with matrices that keep a processor busy (11 to 33 million
parameters) in fp32: the spec's parts trained or all of them, with full checkpointing or none.
Predictions are what `vlmc plan` shows as a step's time on one such device. Measured are steps of
eager torch with AdamW, as `train.py` of a build makes them; the steps take turns, and the median of
each is compared. Exits with 1 where the median error is above 15%.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from memory_prediction import Case as Inputs
from memory_prediction import checkpointed, inputs
from torch import nn

from vlmc.analysis.analyse import analyse
from vlmc.analysis.report import GraphReport
from vlmc.builder.model import instantiate, own_parameters
from vlmc.calibration import calibrate
from vlmc.hardware import device
from vlmc.hardware.cluster import Cluster
from vlmc.hardware.device import Device
from vlmc.ir import ROLES, Arch, Role
from vlmc.partition.chain import Chain
from vlmc.partition.costs import Rooflines
from vlmc.partition.pace import pace
from vlmc.partition.request import Request
from vlmc.partition.setting import Setting
from vlmc.pipeline import load_spec
from vlmc.resolver import resolve
from vlmc.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
MEDIAN = 0.15
ROUNDS = 3
"""Turns of each step. In a turn it runs once before it is measured, as others ran before it."""
AT_ONCE = partial(print, flush=True)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a system's design is made, and its batch."""

    width: int
    """Of the language model."""
    layers: int
    seeing: int
    """Width of the encoder."""
    batch: int
    text: int
    images: int = 1

    @property
    def grown(self) -> dict[str, dict[str, Any]]:
        """Fields of the twin's parts that grow, where a part has them."""
        wide = {"width": self.width, "heads": self.width // 64, "layers": self.layers}
        sees = {"width": self.seeing, "heads": self.seeing // 64, "layers": self.layers}
        return {
            "language": {
                **wide,
                "hidden": 4 * self.width,
                "vocabulary": 8000,
                "decoder_layers": self.layers,
            },
            "encoder": {
                **sees,
                "hidden": 4 * self.seeing,
                "image_size": 128,
                "patch_size": 16,
                "widths": tuple(self.seeing * part // 4 for part in (1, 2, 4, 4)),
                "group_size": 16,
                "count": 36,
            },
            "adapter": {"queries": 32, "hidden": 4 * self.seeing, "head_dim": 64, **sees},
        }


SIZES = {
    "blip2": Size(width=384, layers=4, seeing=256, batch=3, text=64),
    "blip2-flan-t5": Size(width=320, layers=4, seeing=256, batch=3, text=48),
    "flamingo-3b": Size(width=384, layers=4, seeing=128, batch=2, text=64),
    "flamingo-9b": Size(width=256, layers=6, seeing=192, batch=3, text=96),
    "idefics-9b": Size(width=320, layers=4, seeing=320, batch=2, text=128),
    "llava-1.5": Size(width=512, layers=4, seeing=384, batch=2, text=96),
    "visualbert": Size(width=512, layers=6, seeing=512, batch=4, text=40),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step."""

    system: str
    trained: Literal["spec", "all"]
    checkpointing: Literal["none", "full"]

    def __str__(self) -> str:
        return f"{self.system:14} trained: {self.trained:4} checkpointing: {self.checkpointing:4}"


def cases(systems: Sequence[str]) -> Iterator[Case]:
    """Four of each system."""
    for system in systems:
        for trained in ("spec", "all"):
            for kept in ("none", "full"):
                yield Case(system=system, trained=trained, checkpointing=kept)


def design(system: str) -> Arch:
    """A system's design at its size."""
    return designed(system)[1]


def designed(system: str) -> tuple[ModelSpec, Arch]:
    """A system at its size: the twin's ratios, the width and length of something real."""
    size = SIZES[system]
    spec: ModelSpec = load_spec(ROOT / "specs" / f"{system}.yaml").mini()
    parts = {name: _with(getattr(spec, name), more) for name, more in size.grown.items()}
    narrower = getattr(spec.adapter, "width", size.seeing) != spec.encoder.visual().width
    if spec.adapter.kind == "perceiver_resampler" and narrower:
        parts["adapter"] = _with(parts["adapter"], {"width": size.seeing // 2})
    fusion = spec.fusion.mini_for(parts["language"])
    parts["fusion"] = _with(fusion, {"head_dim": 64} if hasattr(fusion, "every") else {})
    spec = spec.model_copy(update=parts)
    return spec, resolve(spec)


def _with(part: Any, more: dict[str, Any]) -> Any:
    """A part with those of the fields that it has and uses."""
    used = {name: value for name, value in more.items() if getattr(part, name, None) is not None}
    return part.model_copy(update=used)


def roles(case: Case, arch: Arch) -> tuple[Role, ...]:
    """The parts that a case trains."""
    if case.trained == "all":
        return ROLES
    return tuple(node.role for node in arch.nodes if not node.frozen)


def given(arch: Arch, system: str) -> dict[str, Any]:
    """What a step takes."""
    size = SIZES[system]
    case = Inputs(system=system, batch=size.batch, text=size.text, images=size.images)
    return inputs(arch, case, torch.float32)


def predicted(case: Case, arch: Arch, report: GraphReport, card: Device) -> float:
    """Seconds of a step on one device, as in a plan."""
    size = SIZES[case.system]
    cluster = Cluster(device=card, count=1, per_node=1, node_gbps=0, network_gbps=0)
    request = Request(
        mode="train",
        batch=size.batch,
        text=size.text,
        images=size.images,
        tokens=arch.tokens.per_image,
        precision="fp32",
    )
    kept = case.checkpointing
    stacks = dict.fromkeys(one.name for one in report.blocks if "*" in one.name)
    setting = Setting(micro_batch=size.batch, keeps=tuple((one, kept) for one in stacks))
    chain = Chain(Rooflines(report, cluster, request), setting)
    return pace(chain, (chain.length,)).seconds


@dataclass
class Runner:
    """A model whose parts are trained and checkpointed as one case after the other asks."""

    arch: Arch
    model: nn.Module
    given: dict[str, Any]
    optimisers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    @classmethod
    def of(cls, system: str) -> Runner:
        """The model of a system, with values."""
        torch.manual_seed(0)
        arch = design(system)
        return cls(arch, instantiate(arch, device="cpu"), given(arch, system))

    def prepare(self, case: Case) -> Callable[[], None]:
        """The step of a case."""
        trained = roles(case, self.arch)
        for module in self.model.modules():
            vars(module).pop("forward", None)
        for node in self.arch.nodes:
            for _, parameter in own_parameters(self.arch, self.model, node):
                parameter.requires_grad_(node.role in trained)
        checkpointed(self.model, case.checkpointing)
        if case.trained not in self.optimisers:
            free = [one for one in self.model.parameters() if one.requires_grad]
            self.optimisers[case.trained] = torch.optim.AdamW(free, lr=1e-6)
            self.step(self.optimisers[case.trained])
            _as_later(self.optimisers[case.trained])
        return partial(self.step, self.optimisers[case.trained])

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        """As `Training.step` of a build."""
        self.model.zero_grad()
        self.model(**self.given).loss.backward()
        optimiser.step()

    def timed(self, case: Case) -> float:
        """Seconds of a step that follows another."""
        step = self.prepare(case)
        step()
        begun = time.perf_counter()
        step()
        found = time.perf_counter() - begun
        self.model.zero_grad()
        return found


def _as_later(optimiser: torch.optim.Optimizer) -> None:
    """Moments as in the middle of a run. In its first steps those of words that did not come yet
    are zero, and gates are closed; the square root of a zero takes torch three times as long."""
    for state in optimiser.state.values():
        for moment in ("exp_avg", "exp_avg_sq"):
            state[moment].uniform_(1e-8, 1e-6)


def measured(runners: dict[str, Runner], every: Sequence[Case]) -> dict[Case, float]:
    """The median of each step."""
    found: dict[Case, list[float]] = {case: [] for case in every}
    for _ in range(ROUNDS):
        for case in every:
            found[case].append(runners[case.system].timed(case))
    return {case: statistics.median(seconds) for case, seconds in found.items()}


def reports(
    runners: dict[str, Runner], every: Sequence[Case]
) -> dict[tuple[str, str], GraphReport]:
    """By system and what is trained: what is read off the graphs."""
    return {
        (case.system, case.trained): analyse(
            runners[case.system].arch,
            trained=roles(case, runners[case.system].arch),
            precision="fp32",
        )
        for case in every
        if case.checkpointing == "none"
    }


def compared(
    seconds: dict[Case, float],
    runners: dict[str, Runner],
    read: dict[tuple[str, str], GraphReport],
    card: Device,
    say: Callable[[str], None],
) -> int:
    """Prints both sides; the exit status."""
    errors: list[float] = []
    for case, taken in seconds.items():
        expected = predicted(case, runners[case.system].arch, read[case.system, case.trained], card)
        errors.append(expected / taken - 1)
        say(f"{case!s} {expected:8.3f} s {taken:8.3f} s {errors[-1]:+7.1%}")
    for system in runners:
        of = [error for case, error in zip(seconds, errors, strict=True) if case.system == system]
        say(f"{system:14} {off_by(of, 'steps: time')}")
    say(f"all: {off_by(errors, 'steps: time')}")
    return 0 if statistics.median(map(abs, errors)) <= MEDIAN else 1


def off_by(errors: Sequence[float], what: str) -> str:
    """The errors of so many steps or figures in a line."""
    sizes = [abs(one) for one in errors]
    return (
        f"{len(errors)} {what} off by {statistics.median(sizes):.1%} (median), "
        f"{max(sizes):.1%} (worst); {statistics.mean(errors):+.1%} in the mean"
    )


def asked(words: Sequence[str], about: str | None) -> argparse.Namespace:
    """Systems (all where none is named), threads, which are set, and a device or None."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("systems", nargs="*", choices=[*SIZES, []])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    options.systems = options.systems or list(SIZES)
    return options


def processor(options: argparse.Namespace, say: Callable[[str], None]) -> Device:
    """The device that is named, or else this one as calibration finds it."""
    if options.device is None:
        say(f"calibrating with {options.threads} threads")
        found = calibrate(threads=options.threads).to_json()
        card = Device.model_validate({"name": "this processor", **found})
    else:
        card = device(options.device)
    say(f"{card.about}: {card.efficiency.source}")
    return card


def main(words: Sequence[str], say: Callable[[str], None] = AT_ONCE) -> int:
    """Runs the steps of some systems, or of all of them; the exit status."""
    options = asked(words, __doc__)
    every = list(cases(options.systems))
    runners = {system: Runner.of(system) for system in options.systems}
    read = reports(runners, every)
    card = processor(options, say)
    return compared(measured(runners, every), runners, read, card, say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
