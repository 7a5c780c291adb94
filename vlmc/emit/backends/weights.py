"""weights/: the values of the model as safetensors, under the names of model.py."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vlmc.builder.model import instantiate
from vlmc.builder.shards import stored_tensors
from vlmc.builder.values import valued
from vlmc.builder.weights import save_weights
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.emit.artifact import Artifact, Build, Deferred, Weights
from vlmc.hardware.host import free_disk, free_memory

PATH = "weights"
SLACK = 256 * 2**20
"""Bytes that stay free beside the weights: the interpreter's own and the file system's."""


def emit(build: Build) -> Artifact:
    """The weights of a build: from its checkpoint, from the folders that the spec names, or from
    a seed; put off where there is none of them or the present machine cannot hold them."""
    folders = [build.checkpoint] if build.checkpoint else list(build.parts.values())
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    if not folders and build.seed is None:
        return _deferred(build, "no checkpoint was given", "--checkpoint DIR")
    option = "--checkpoint DIR" if build.checkpoint else _seed_option(build)
    if absent:
        return _deferred(build, f"there is no checkpoint folder {', '.join(absent)} here", option)
    size = _bytes(build, folders)
    if size + SLACK > free_memory():
        return _deferred(build, f"{size / 1e9:,.1f} GB of memory are not free here", option)
    if size + SLACK > free_disk(build.folder):
        return _deferred(build, f"{size / 1e9:,.1f} GB of disk are not free here", option)
    return Weights(
        path=PATH,
        source=_source(build),
        write=lambda folder: _write(build, folder),
        fits=lambda folder: _fits(build, folder),
    )


def _seed_option(build: Build) -> str:
    usual = 0 if build.mini else None
    return "" if build.seed == usual else f"--seed {build.seed}"


def _deferred(build: Build, reason: str, option: str) -> Deferred:
    return Deferred(
        path=PATH,
        reason=reason,
        command=build.command(option),
        fits=lambda folder: _fits(build, folder),
    )


def _bytes(build: Build, folders: list[Path]) -> int:
    """Bytes of the weights: those of the checkpoint's own files, fp32 where (in part) seeded."""
    stored = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    return stored if build.checkpoint and stored else 4 * build.arch.parameters


def _source(build: Build) -> str:
    if build.checkpoint is not None:
        return f"checkpoint {_digest(build, build.checkpoint)}"
    named = [f"{role} {_digest(build, folder)}" for role, folder in build.parts.items()]
    return ", ".join([*named, f"seed {build.seed or 0}"])


def _digest(build: Build, folder: Path) -> str:
    """What a checkpoint folder holds, to the last bit: a fine-tuned copy has the same names, sizes
    and shapes."""
    digests: dict[str, str] = {}
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        build.progress(f"hashing {path.name}")
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _write(build: Build, folder: Path) -> None:
    build.progress("reading weights" if build.checkpoint or build.parts else "drawing weights")
    model = valued(build.arch, checkpoint=build.checkpoint, parts=build.parts, seed=build.seed or 0)
    build.progress("writing weights")
    save_weights(model, folder)


def _fits(build: Build, folder: Path) -> bool:
    try:
        stored = {name: one.shape for name, one in stored_tensors(folder).items()}
    except (UsageError, EnvironmentFault):
        return False
    model = instantiate(build.arch)
    return stored == {name: tuple(p.shape) for name, p in model.named_parameters()}
