"""Prints predicted against tracked peak memory, and FLOPs, of training steps of all the systems.

    python benchmarks/memory_prediction.py

Each line is a design that is small enough to run: of several depths and widths, parts frozen and
trained, with and without checkpointing. Predictions come from `vlmc.analysis`; peaks from torch's
MemTracker around two real steps on the CPU (the second holds the optimiser's state), FLOPs from its
FlopCounterMode. Exits with 1 where the median error is above 3%, the worst above 8%, or FLOPs are
not equal.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vlmc.analysis.analyse import FORMATS, analyse
from vlmc.analysis.memory import Checkpointing, Peak, States, peak
from vlmc.analysis.operators import FUSED
from vlmc.analysis.report import GraphReport, Sizes
from vlmc.builder.model import instantiate, own_parameters
from vlmc.components.shared.attention import Attention
from vlmc.components.shared.relative import RelativeAttention
from vlmc.ir import ROLES, Arch, Role
from vlmc.pipeline import load_spec
from vlmc.resolver import resolve
from vlmc.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
MEDIAN, WORST = 0.03, 0.08
STACKS = ("layers", "encoder_layers", "decoder_layers", "blocks", "gated_blocks")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training step."""

    system: str
    layers: int | None = None
    """Of the encoder and the language model; the twin's own by default."""
    width: int | None = None
    """Of the language model."""
    batch: int = 2
    text: int = 24
    images: int = 1
    frames: int = 1
    trained: Literal["spec", "all", "adapter"] = "spec"
    checkpointing: Checkpointing = "none"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __str__(self) -> str:
        size = f"{self.layers or 'few'} layers, width {self.width or 'own'}"
        step = f"{self.batch} x {self.text} words, {self.images} images"
        how = f"{self.trained}, checkpointing {self.checkpointing}, {self.precision}"
        return f"{self.system:14} {size:24} {step:26} {how}"


def cases() -> Iterator[Case]:
    """All of them: five for each system."""
    for path in sorted((ROOT / "specs").glob("*.yaml")):
        system = path.stem
        yield Case(system=system, images=2)
        yield Case(system=system, layers=9, trained="all", checkpointing="full")
        yield Case(system=system, layers=8, text=96, checkpointing="selective", trained="all")
        yield Case(system=system, layers=6, width=192, batch=5, text=40, trained="all")
        yield Case(system=system, layers=7, batch=3, text=64, trained="adapter", precision="bf16")


def twin(case: Case) -> Arch:
    """The design of a case."""
    spec: ModelSpec = load_spec(ROOT / "specs" / f"{case.system}.yaml").mini()
    encoder, language = spec.encoder, spec.language
    if case.width is not None:
        language = language.mini(case.width)
        if hasattr(language, "hidden"):
            language = language.model_copy(update={"hidden": 2 * case.width})
    if case.layers is not None:
        changes: dict[str, Any] = {"layers": case.layers}
        if getattr(language, "decoder_layers", None) is not None:
            changes["decoder_layers"] = case.layers - 1
        language = language.model_copy(update=changes)
        if hasattr(encoder, "layers"):
            encoder = encoder.model_copy(update={"layers": case.layers})
        elif hasattr(encoder, "depths"):
            depths = tuple(case.layers // 2 for _ in encoder.depths)
            encoder = encoder.model_copy(update={"depths": depths})
    fusion = spec.fusion.mini_for(language)
    parts = {"encoder": encoder, "language": language, "fusion": fusion}
    return resolve(spec.model_copy(update=parts))


def roles(case: Case, arch: Arch) -> tuple[Role, ...]:
    """The parts that a case trains."""
    if case.trained == "all":
        return ROLES
    if case.trained == "adapter":
        # Not every adapter has parameters of its own.
        return ("adapter", "fusion") if arch.node("adapter").count else ("head", "fusion")
    return tuple(node.role for node in arch.nodes if not node.frozen)


def inputs(arch: Arch, case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """Keyword arguments of a step, with values, as a training script would make them."""
    batch, text, images = case.batch, case.text, case.images
    pixels = [int(dim) for dim in arch.inputs[0].type.dims[1:]]
    if len(pixels) == 4:
        pixels = pixels[1:] if case.frames == 1 else [case.frames, *pixels[1:]]
    if arch.serving == "single_pass":
        seen = torch.randn(batch, images * arch.tokens.per_image, *pixels[1:], dtype=dtype)
        ids = torch.ones(batch, text, dtype=torch.long)
        labels = torch.rand(batch, int(arch.outputs[0].type.dims[-1]), dtype=dtype)
        if arch.node("head").kind == "masked_lm":
            labels = torch.zeros(batch, text + seen.shape[1], dtype=torch.long)
        return {"input_ids": ids, arch.inputs[0].name: seen, "labels": labels}
    token = arch.node("fusion").arguments["image_token"]
    assert isinstance(token, int)
    words = torch.zeros(batch, text, dtype=torch.long)
    if arch.serving == "cross_attention":
        words[:, :images] = token
        seen = torch.randn(batch, images, *pixels, dtype=dtype)
        return {"input_ids": words, "pixel_values": seen, "labels": words.clone()}
    places = torch.full((batch, images * arch.tokens.per_image), token)
    ids = torch.cat((places, words), dim=1)
    labels = words if arch.serving == "encoder_decoder" else ids
    seen = torch.randn(batch * images, *pixels, dtype=dtype)
    return {"input_ids": ids, "pixel_values": seen, "labels": labels.clone()}


def checkpointed(model: nn.Module, kept: Checkpointing) -> None:
    """As a training script does it: each block, or each attention, through torch's checkpoint."""
    for path, module in model.named_modules():
        stack, _, number = path.rpartition(".")
        block = stack.rpartition(".")[2] in STACKS and number.isdigit()
        # Layers of an MLP adapter are no blocks.
        block = block and any(True for _ in module.children())
        inside = any(f".{one}." in f".{path}" for one in STACKS)
        attention = isinstance(module, (Attention, RelativeAttention)) and inside
        if (kept == "full" and block) or (kept == "selective" and attention):
            module.forward = partial(
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )


class _NoHook:
    def remove(self) -> None:
        """There is nothing to remove."""


def tracked(model: nn.Module, given: dict[str, Tensor]) -> int:
    """The peak of two training steps, in bytes, by MemTracker."""
    trained = [one for one in model.parameters() if one.requires_grad]
    # With foreach=True MemTracker takes lists of temporaries for the optimiser's state.
    optimiser = torch.optim.AdamW(trained, foreach=False)
    tracker: Any = MemTracker()
    for one in model.parameters():
        if not one.requires_grad:  # it would hang a hook on a frozen parameter, and fail
            tracker._param_to_grad_hook_handles[one] = (_NoHook(), _NoHook())
    # Inputs are seen only if they are named.
    tracker.track_external(model, optimiser, *given.values())
    with tracker:
        for _ in range(2):
            loss: Any = model(**given).loss
            loss.backward()
            del loss
            optimiser.step()
            optimiser.zero_grad()
            tracker.reset_mod_stats()  # modules are called once between resets, the peak stays
    return next(iter(tracker.get_tracker_snapshot("peak").values()))["Total"]


def counted(model: nn.Module, given: dict[str, Tensor]) -> tuple[int, int]:
    """FLOPs of a forward and a backward pass, by FlopCounterMode."""
    with FlopCounterMode(display=False, custom_mapping=dict(FUSED)) as counter:
        loss: Any = model(**given).loss
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False, custom_mapping=dict(FUSED)) as counter:
        loss.backward()
    model.zero_grad()
    return forward, counter.get_total_flops()


@dataclass(frozen=True, kw_only=True)
class Result:
    """Both sides of a case."""

    case: Case
    predicted: Peak
    tracked: int
    flops: tuple[int, int]
    counted: tuple[int, int]

    @property
    def error(self) -> float:
        """Of the peak, as a share; positive where too much was predicted."""
        return self.predicted.total / self.tracked - 1

    def __str__(self) -> str:
        flops = "equal" if self.flops == self.counted else f"{self.flops} {self.counted}"
        sizes = f"{self.predicted.total / 1e6:8.3f} MB {self.tracked / 1e6:8.3f} MB"
        return f"{self.case!s:104} {sizes} {self.error:+7.2%}  {flops}  at {self.predicted.at}"


def run(case: Case) -> Result:
    """Predicts and measures."""
    torch.manual_seed(0)
    arch, dtype = twin(case), FORMATS[case.precision]
    trained = roles(case, arch)
    report = analyse(arch, trained=trained, precision=case.precision, frames=case.frames)
    sizes = Sizes(
        batch=case.batch, text=case.text, images=case.images, tokens=arch.tokens.per_image
    )
    model = instantiate(arch, device="cpu").to(dtype)
    for node in arch.nodes:
        for _, parameter in own_parameters(arch, model, node):
            parameter.requires_grad_(node.role in trained)
    given = inputs(arch, case, dtype)
    flops = counted(model, given)
    checkpointed(model, case.checkpointing)
    bytes_ = dtype.itemsize
    states = States(trained=bytes_, frozen=bytes_, gradient=bytes_, optimiser=2 * bytes_)
    kept = {block.name: case.checkpointing for block in report.blocks if "*" in block.name}
    return Result(
        case=case,
        predicted=peak(report, sizes, states, kept),
        tracked=tracked(model, given),
        flops=summed(report, sizes),
        counted=flops,
    )


def summed(report: GraphReport, sizes: Sizes) -> tuple[int, int]:
    """FLOPs of a forward and a backward pass, by the report."""
    blocks = [report.blocks[place] for place in report.order]

    def total(*phases: Any) -> int:
        return int(
            sum(
                block.flops(phase)(
                    batch=sizes.batch, text=sizes.text, images=sizes.images, tokens=sizes.tokens
                )
                for block in blocks
                for phase in phases
            )
        )

    return total("forward"), total("backward_input", "backward_weight")


def main(say: Callable[[str], None] = print) -> int:
    """Runs all cases; the exit status."""
    torch.set_num_threads(1)
    results: list[Result] = []
    for case in cases():
        results.append(run(case))
        say(str(results[-1]))
    errors = [abs(one.error) for one in results]
    median, worst = statistics.median(errors), max(errors)
    equal = sum(one.flops == one.counted for one in results)
    say(f"{len(results)} steps: peak memory off by {median:.2%} (median), {worst:.2%} (worst)")
    say(f"FLOPs equal to FlopCounterMode's in {equal} of {len(results)}")
    return 0 if median <= MEDIAN and worst <= WORST and equal == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
