"""From a spec or a build folder to a session: weights, an engine, and the files that came along."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmc.builder.values import valued
from vlmc.diagnostics import UsageError
from vlmc.ir import Arch, Role
from vlmc.resolver import resolve
from vlmc.runtime.amounts import check_threads, check_whole
from vlmc.runtime.assemble import Belongings, equip, of_build, without_values
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.engines.graph_files import read_graphs
from vlmc.runtime.engines.names import check_engine
from vlmc.runtime.engines.open import open_engine
from vlmc.runtime.engines.paged_eager import PagedEagerEngine
from vlmc.runtime.finite import not_finite
from vlmc.runtime.placement import check_blocks, check_memory, device_of, dtype_of
from vlmc.runtime.session import Session
from vlmc.spec.document import ModelSpec

Report = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the values of a model come from: a Hugging Face folder, a build folder, a folder for
    each part, or a seed where there is none of them."""

    checkpoint: Path | None = None
    build: Path | None = None
    parts: dict[Role, Path]
    mini: bool = False

    def belongings(self, design: Design, tokenizer: Path | None) -> Belongings:
        """The folders in which the files lie that came with the values."""
        if self.build is not None:
            return of_build(self.build, design, tokenizer)
        given: set[str] = set(self.parts)
        seeded = self.checkpoint is None and not given
        return Belongings(
            words=self.checkpoint or self.parts.get("language"),
            pictures=self.checkpoint or self.parts.get("encoder"),
            tokenizer=tokenizer,
            seeded=seeded,
            seeded_parts=without_values(design, given) if given else (),
        )


def start(
    spec: ModelSpec,
    *,
    mini: bool = False,
    checkpoint: Path | None = None,
    build: Path | None = None,
    tokenizer: Path | None = None,
    engine: str = "eager",
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
    blocks: int | None = None,
    report: Report = lambda _: None,
) -> Session:
    """Loads a design: the twin with seeded weights (`mini`), or the design itself with the weights
    of `checkpoint`, of the build folder `build`, or of the folders that the spec names.

    `engine` other than eager runs the graphs of `build`, with a paged key/value cache of so many
    `blocks` where they are given. `dtype` is that of eager: fp32 on the CPU and bf16 elsewhere by
    default. Raises UsageError where there are no weights or a file does not fit the design,
    EnvironmentFault where it does not fit this machine.
    """
    running: Engine
    begun = time.perf_counter()
    origin = _origin(spec, mini, checkpoint, build)
    if threads is not None:
        check_threads(threads)
    if blocks is not None:
        check_whole("blocks", blocks, 1)
    number = None if dtype is None else dtype_of(dtype)
    arch = resolve(spec, mini=mini)
    spec = spec.mini() if mini else spec
    design = describe(spec, arch)
    equipment = equip(design, origin.belongings(design, tokenizer))
    if engine == "eager":
        if blocks is not None:
            place = device_of(device)
            pool = number or _usual(place)
            check_blocks(arch, blocks, design.cache_elements, place, pool)
        model = _model(arch, design, origin, device, number, threads, report)
        if blocks is None:
            running = EagerEngine(model, design)
        else:
            running = PagedEagerEngine(model, design, blocks=blocks)
        session = equipment.session(running, lambda: _bad(model))
    else:
        folder = _build_for(engine, build, mini, checkpoint, device, dtype)
        report(f"opening the {engine} graphs")
        running = open_engine(folder, engine, design, threads=threads, blocks=blocks, report=report)
        if blocks is not None:
            graphs = read_graphs(folder / engine)
            pool = dtype_of(getattr(torch, graphs.dtype))
            check_blocks(arch, blocks, design.cache_elements, torch.device(graphs.place), pool)
        session = equipment.session(running, lambda: not_finite(folder / "weights"))
    session.load_seconds = time.perf_counter() - begun
    return session


def _model(
    arch: Arch,
    design: Design,
    origin: Origin,
    device: str,
    dtype: torch.dtype | None,
    threads: int | None,
    report: Report,
) -> nn.Module:
    place = device_of(device)
    number = dtype or _usual(place)
    if threads is not None:
        torch.set_num_threads(threads)
    cache = design.sequence * design.cache_elements * number.itemsize
    check_memory(arch, place, number, cache)
    given = origin.checkpoint or origin.build or origin.parts
    report("reading weights" if given else "drawing weights")
    model = valued(
        arch,
        checkpoint=origin.checkpoint or origin.build,
        parts=origin.parts,
        dtype=number,
        device=place,
    )
    return model.eval().requires_grad_(False)


def _usual(place: torch.device) -> torch.dtype:
    return torch.float32 if place.type == "cpu" else torch.bfloat16


def _build_for(
    engine: str,
    build: Path | None,
    mini: bool,
    checkpoint: Path | None,
    device: str,
    dtype: str | None,
) -> Path:
    """The build folder whose graphs an engine runs. Raises UsageError where there is none, or what
    was asked for is settled in the graphs."""
    check_engine(engine)
    if build is None and checkpoint is not None and (checkpoint / "manifest.json").is_file():
        raise UsageError(
            f"--engine {engine} runs the graphs of a build as they were made: name {checkpoint} "
            f"itself, and not as the --checkpoint of a spec"
        )
    if build is None:
        artifact, _, quantised = engine.partition("-")
        how = f"--artifacts model,{artifact}{f' --quantize {quantised}' * bool(quantised)}"
        raise UsageError(
            f"--engine {engine} runs what a build made, and this is none: `vlmc build SPEC "
            f"{how} --output FOLDER` (with --mini or --checkpoint DIR) makes one; then name the "
            f"folder"
        )
    if mini:
        raise UsageError(
            f"--mini draws the weights of a twin anew, for --engine eager; --engine {engine} runs "
            f"the graphs in {build} with the weights there: leave --mini out"
        )
    if checkpoint is not None:
        raise UsageError(
            f"--checkpoint {checkpoint}: --engine {engine} runs the graphs in {build} with the "
            f"weights there; leave it out, or name the build folder that has those weights"
        )
    if dtype is not None:
        raise UsageError(f"--dtype {dtype}: --engine {engine} computes as its build says")
    if device != "cpu":
        raise UsageError(f"--device {device}: --engine {engine} runs where its build says")
    if not (build / "weights").is_dir():
        raise UsageError(
            f"{build} has no weights: build it with `vlmc build {build} --checkpoint DIR`"
        )
    return build


def _bad(model: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity."""
    return [name for name, one in model.named_parameters() if not bool(torch.isfinite(one).all())]


def _origin(spec: ModelSpec, mini: bool, checkpoint: Path | None, build: Path | None) -> Origin:
    if mini and checkpoint is not None:
        raise UsageError(
            "--mini runs the laptop-size twin with seeded weights, --checkpoint the design itself "
            "with published ones: give one of them"
        )
    if mini:
        return Origin(parts={}, mini=True)
    if checkpoint is not None and (checkpoint / "manifest.json").is_file():
        build = checkpoint  # a build folder serves as a checkpoint too
    elif checkpoint is not None:
        return Origin(checkpoint=checkpoint, parts={})
    if build is not None and (build / "weights").is_dir():
        return Origin(build=build, parts={})
    parts: Any = spec.weight_folders
    if not parts:
        raise UsageError(
            f"{spec.name} has no weights here: --checkpoint DIR runs it with a Hugging Face folder "
            f"(config.json + safetensors), --mini runs its laptop-size twin at once"
        )
    return Origin(parts=parts)
