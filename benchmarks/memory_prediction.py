"""Prints predicted against tracked peak memory, and FLOPs, of training steps of all the systems.

    python benchmarks/memory_prediction.py

Each line is a design that is small enough to run: of several depths and widths, parts frozen and
trained, with and without checkpointing. Predictions come from `vlmc.analysis`; peaks from torch's
MemTracker around two real steps on the CPU (the second holds the optimiser's state), FLOPs from its
FlopCounterMode. Some steps more are those of FSDP2 on one rank, which keeps whole weights beside
their shards, by torch's FSDPMemTracker. Exits with 1 where the median error is above 3%, the worst
above 8%, or FLOPs are not equal. Two processes at work; names of systems leave out the others.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
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
SHARDED = ("llava-1.5", "visualbert", "blip2")
"""Systems whose blocks are called as modules, which is when FSDP2 gathers their weights."""
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
    zero: Literal[0, 2, 3] = 0
    """With FSDP2: 2 keeps what it gathered until the step is done, 3 of a block while it runs."""

    def __str__(self) -> str:
        size = f"{self.layers or 'few'} layers, width {self.width or 'own'}"
        step = f"{self.batch} x {self.text} words, {self.images} images"
        how = f"{self.trained}, checkpointing {self.checkpointing}, {self.precision}"
        how += f", FSDP2 stage {self.zero}" if self.zero else ""
        return f"{self.system:14} {size:24} {step:26} {how}"


def cases() -> Iterator[Case]:
    """All of them: five for each system, and some with FSDP2."""
    for path in sorted((ROOT / "specs").glob("*.yaml")):
        system = path.stem
        yield Case(system=system, images=2)
        yield Case(system=system, layers=9, trained="all", checkpointing="full")
        yield Case(system=system, layers=8, text=96, checkpointing="selective", trained="all")
        yield Case(system=system, layers=6, width=192, batch=5, text=40, trained="all")
        yield Case(system=system, layers=7, batch=3, text=64, trained="adapter", precision="bf16")
    for system in SHARDED:
        yield Case(system=system, layers=4, trained="all", zero=2)
        yield Case(system=system, layers=5, trained="all", text=64, zero=3)
        yield Case(system=system, layers=4, text=40, images=2, zero=3)


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


class Tracker(MemTracker):
    """Of all modules together: the peak of each takes most of the time."""

    def _update_peak_stats(self, peak_state: Any) -> None:
        for place, now in self._curr_mem_snap.items():
            if self._peak_mem.get(place, 0) < now["Total"]:
                self._peak_mem[place] = now["Total"]
                self._peak_mem_snap[place] = dict(now)


def tracked(model: nn.Module, given: dict[str, Tensor]) -> int:
    """The peak of two training steps, in bytes, by MemTracker."""
    trained = [one for one in model.parameters() if one.requires_grad]
    # With foreach=True MemTracker takes lists of temporaries for the optimiser's state.
    optimiser = torch.optim.AdamW(trained, foreach=False)
    tracker: Any = Tracker()
    for one in model.parameters():
        if not one.requires_grad:  # it would hang a hook on a frozen parameter, and fail
            tracker._param_to_grad_hook_handles[one] = (_NoHook(), _NoHook())
    # Inputs are seen only if they are named.
    tracker.track_external(model, optimiser, *given.values())
    return _peak_of(tracker, model, given, optimiser)


def tracked_sharded(model: nn.Module, given: dict[str, Tensor], zero: int) -> tuple[int, set[str]]:
    """As `tracked`, with FSDP2 on one rank by FSDPMemTracker; and the blocks that it shards one
    by one."""
    ran: set[str] = set()
    blocks = {
        path: module
        for path, module in model.named_modules()
        if path.split(".")[1:2] == ["layers"] and path.count(".") == 2
        if not path.startswith("adapter")
    }
    hooks = [one.register_forward_pre_hook(lambda *_, p=p: ran.add(p)) for p, one in blocks.items()]
    with torch.no_grad():
        model(**given)
    for hook in hooks:
        hook.remove()
    distributed.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    try:
        return _sharded_peak(model, given, {path: blocks[path] for path in sorted(ran)}, zero), ran
    finally:
        distributed.destroy_process_group()


def _sharded_peak(
    model: nn.Module, given: dict[str, Tensor], blocks: dict[str, nn.Module], zero: int
) -> int:
    options: Any = {"mesh": init_device_mesh("cpu", (1,)), "reshard_after_forward": zero == 3}
    for block in blocks.values():  # FSDPMemTracker fails on what is sharded and never runs
        fully_shard(block, **options)
    fully_shard(model, **options)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(trained, foreach=False)
    tracker: Any = FSDPMemTracker(model, optimiser)
    tracker.track_inputs(tuple(given.values()))
    return _peak_of(tracker, model, given, optimiser)


def gathered(report: GraphReport, zero: int, sharded: set[str]) -> list[int]:
    """Bytes of whole weights beside their shards, at each place of the timeline. What is not
    sharded block by block is held throughout; of a block, with stage 3 while it runs, with stage 2
    until its backward pass is done."""
    stacks = Counter(f"{path.rpartition('.')[0]}.*" for path in sharded)
    each = {one.name: one.parameters * report.number_bytes for one in report.blocks}
    held = {stack: Fraction(count * each[stack]) for stack, count in stacks.items()}
    rest = report.parameters * report.number_bytes - sum(held.values())
    visits = [report.visits[place] for place in report.timeline]
    names = [report.blocks[visit.block].name for visit in visits]
    passes = Counter(n for n, visit in zip(names, visits, strict=True) if not visit.forward)
    freed = {stack: whole / (passes[stack] or 1) for stack, whole in held.items()}
    found: list[int] = []
    for name, visit in zip(names, visits, strict=True):
        beside = sum(held.values()) if zero == 2 else each[name] if name in stacks else 0
        found.append(int(rest + beside))
        if name in stacks and not visit.forward:
            held[name] -= freed[name]
    return found


def _peak_of(
    tracker: Any, model: nn.Module, given: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> int:
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
    checkpointed(model, case.checkpointing)
    flops = counted(model, given)
    beside: list[int] = []
    if case.zero:
        measured, ran = tracked_sharded(model, given, case.zero)
        beside = gathered(report, case.zero, ran)
    else:
        measured = tracked(model, given)
    bytes_ = dtype.itemsize
    states = States(trained=bytes_, frozen=bytes_, gradient=bytes_, optimiser=2 * bytes_)
    kept = {block.name: case.checkpointing for block in report.blocks if "*" in block.name}
    return Result(
        case=case,
        predicted=peak(report, sizes, states, kept, beside),
        tracked=measured,
        flops=summed(report, sizes, case.checkpointing),
        counted=flops,
    )


def summed(report: GraphReport, sizes: Sizes, checkpointing: str) -> tuple[int, int]:
    """FLOPs of a forward and a backward pass, by the report; the latter with what it computes
    again."""
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

    again = () if checkpointing == "none" else (f"again_{checkpointing}",)
    return total("forward"), total("backward_input", "backward_weight", *again)


def _one_thread() -> None:
    torch.set_num_threads(1)


AT_ONCE = partial(print, flush=True)


def main(systems: Sequence[str] = (), say: Callable[[str], None] = AT_ONCE) -> int:
    """Runs the cases of some systems, or all of them; the exit status."""
    chosen = [case for case in cases() if not systems or case.system in systems]
    results: list[Result] = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=_one_thread) as pool:
        for result in pool.map(run, chosen):
            results.append(result)
            say(str(result))
    for system in dict.fromkeys(case.system for case in chosen):
        say(f"{system:14} {_errors([one for one in results if one.case.system == system])}")
    errors = [abs(one.error) for one in results]
    equal = sum(one.flops == one.counted for one in results)
    say(f"all: {_errors(results)}")
    say(f"FLOPs equal to FlopCounterMode's in {equal} of {len(results)}")
    good = statistics.median(errors) <= MEDIAN and max(errors) <= WORST
    return 0 if good and equal == len(results) else 1


def _errors(results: Sequence[Result]) -> str:
    errors = [abs(one.error) for one in results]
    median, worst = statistics.median(errors), max(errors)
    return f"{len(results)} steps: peak memory off by {median:.2%} (median), {worst:.2%} (worst)"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
