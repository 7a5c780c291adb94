"""A model that is ready to answer: weights, tokenizer and image processor of one design."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmc.builder.shards import read_json
from vlmc.builder.values import valued
from vlmc.diagnostics import UsageError
from vlmc.ir import Arch, Role
from vlmc.resolver import resolve
from vlmc.runtime.byte_tokenizer import byte_tokenizer
from vlmc.runtime.placement import DTYPES, check_memory, device_of
from vlmc.runtime.processor import (
    ImageProcessor,
    check_size,
    from_checkpoint,
    from_spec,
    has_processor,
)
from vlmc.runtime.tokenizer import Tokenizer, load_tokenizer
from vlmc.spec.document import ModelSpec

Report = Callable[[str], None]
"""Told what is being done, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the values of a model come from: a Hugging Face folder, a build folder, a folder for
    each part, or a seed where there is none of them."""

    checkpoint: Path | None = None
    build: Path | None = None
    parts: dict[Role, Path]
    mini: bool = False

    @property
    def seeded(self) -> bool:
        """Whether the model has learnt nothing."""
        if self.build is not None:
            return _built_from(self.build).startswith("seed")
        return self.checkpoint is None and not self.parts

    @property
    def folder(self) -> Path | None:
        """Where the files lie that came with all of the weights."""
        return self.checkpoint or (self.build and self.build / "weights")

    def seeded_parts(self, arch: Arch) -> tuple[Role, ...]:
        """The parts that have learnt nothing while others have. A language model's folder counts
        for the head."""
        if self.seeded or self.checkpoint is not None:
            return ()
        given: set[str] = set(self.parts)
        if self.build is not None:
            sources = _built_from(self.build)
            if "seed" not in sources.split():
                return ()
            given = {source.split()[0] for source in sources.split(", ")}
        if "language" in given:
            given.add("head")
        return tuple(n.role for n in arch.nodes if n.count and n.role not in given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One design in memory, on one device."""

    spec: ModelSpec
    """The design that runs: the twin's where `arch.mini`."""
    arch: Arch
    model: nn.Module
    tokenizer: Tokenizer
    processor: ImageProcessor | None
    """None where the design takes region features and no pixels."""
    source: Source
    device: torch.device
    dtype: torch.dtype
    load_seconds: float


def start(
    spec: ModelSpec,
    *,
    mini: bool = False,
    checkpoint: Path | None = None,
    build: Path | None = None,
    tokenizer: Path | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    report: Report = lambda _: None,
) -> Session:
    """Loads a design: the twin with seeded weights (`mini`), or the design itself with the weights
    of `checkpoint`, of the build folder `build`, or of the folders that the spec names.

    `dtype` is fp32 on the CPU and bf16 elsewhere by default. Raises UsageError where there are no
    weights or a file does not fit the design, EnvironmentFault where it does not fit this machine.
    """
    begun = time.perf_counter()
    source = _source(spec, mini, checkpoint, build)
    arch = resolve(spec, mini=mini)
    spec = spec.mini() if mini else spec
    place = device_of(device)
    number = DTYPES[dtype or ("fp32" if place.type == "cpu" else "bf16")]
    words = _tokenizer(spec, source, tokenizer)
    processor = _processor(spec, source)
    cache = arch.tokens.sequence * spec.language.cache_elements_per_token() * number.itemsize
    check_memory(arch, place, number, cache)
    report("drawing weights" if source.seeded else "reading weights")
    model = valued(
        arch,
        checkpoint=source.checkpoint or source.build,
        parts=source.parts,
        dtype=number,
        device=place,
    )
    return Session(
        spec=spec,
        arch=arch,
        model=model.eval().requires_grad_(False),
        tokenizer=words,
        processor=processor,
        source=source,
        device=place,
        dtype=number,
        load_seconds=time.perf_counter() - begun,
    )


def _source(spec: ModelSpec, mini: bool, checkpoint: Path | None, build: Path | None) -> Source:
    if mini and checkpoint is not None:
        raise UsageError(
            "--mini runs the laptop-size twin with seeded weights, --checkpoint the design itself "
            "with published ones: give one of them"
        )
    if mini:
        return Source(parts={}, mini=True)
    if checkpoint is not None and (checkpoint / "manifest.json").is_file():
        build = checkpoint  # a build folder serves as a checkpoint too
    elif checkpoint is not None:
        return Source(checkpoint=checkpoint, parts={})
    if build is not None and (build / "weights").is_dir():
        return Source(build=build, parts={})
    parts = spec.weight_folders
    if not parts:
        raise UsageError(
            f"{spec.name} has no weights here: --checkpoint DIR runs it with a Hugging Face folder "
            f"(config.json + safetensors), --mini runs its laptop-size twin at once"
        )
    return Source(parts=parts)


def _tokenizer(spec: ModelSpec, source: Source, given: Path | None) -> Tokenizer:
    """The tokenizer that is given, else that of the weights' folder, else bytes for a twin."""
    folder = source.folder or source.parts.get("language")
    if given is not None:
        return load_tokenizer(given, checkpoint=folder)
    if source.build is not None and (source.build / "tokenizer.json").is_file():
        return load_tokenizer(source.build, checkpoint=folder)
    if folder is not None and (source.build is None or (folder / "tokenizer.json").is_file()):
        return load_tokenizer(folder)
    if source.seeded:
        return byte_tokenizer(spec.language.architecture, spec.language.total_vocabulary)
    raise UsageError(
        f"{source.build or spec.name} has weights but no tokenizer; give the published one with "
        f"--tokenizer PATH (tokenizer.json, or the folder that holds it)"
    )


def _processor(spec: ModelSpec, source: Source) -> ImageProcessor | None:
    encoder: Any = spec.encoder
    if not hasattr(encoder, "preprocess"):
        return None
    processor = from_spec(encoder.preprocess, encoder.image_size)
    where = f"the spec of {spec.name}"
    folder = source.folder or source.parts.get("encoder")
    if source.build is not None and has_processor(source.build):  # put there by hand
        folder = source.build
    if folder is not None:
        own = from_checkpoint(folder, processor)
        where = where if own == processor else f"the image processor of {folder}"
        processor = own
    check_size(processor, encoder.image_size, where)
    return processor


def _built_from(folder: Path) -> str:
    """What a build's manifest says that its weights come from, such as `seed 0`."""
    artifacts: Any = read_json(folder / "manifest.json").get("artifacts")
    weights: Any = artifacts.get("weights") if isinstance(artifacts, dict) else None  # pyright: ignore
    origin: Any = weights.get("source") if isinstance(weights, dict) else None  # pyright: ignore
    return origin if isinstance(origin, str) else ""
