"""weights/: the values of the model as safetensors, under the names of model.py."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from vlmc.builder.model import instantiate
from vlmc.builder.shards import stored_tensors
from vlmc.builder.values import check_values, valued
from vlmc.builder.weights import LAYOUT, save_weights
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.diagnostics.amount import volume
from vlmc.emit.artifact import Artifact, Build, Deferred, Weights
from vlmc.emit.backends.graphs import WEIGHTS as PATH
from vlmc.emit.backends.graphs import values_option
from vlmc.emit.recipe import values_in
from vlmc.hardware.host import free_disk, free_memory
from vlmc.runtime.placement import dtype_of

SLACK = 256 * 2**20
"""Bytes of memory that stay free beside the weights: the interpreter's own."""

WORDS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a checkpoint folder holds for text: the tokenizer, what begins a text and what ends it."""

PICTURES = ("preprocessor_config.json", "processor_config.json")
"""What a checkpoint folder holds for images."""


def emit(build: Build) -> Artifact:
    """The weights of a build: from its checkpoint, from the folders that the spec names, or from
    a seed; put off where there is none of them or the present machine cannot hold them."""
    folders = [build.checkpoint] if build.checkpoint else list(build.parts.values())
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    if not folders and build.seed is None:
        return _deferred(build, "no checkpoint was given", "--checkpoint DIR")
    option = values_option(build)
    if absent:
        return _deferred(build, f"there is no checkpoint folder {', '.join(absent)} here", option)
    check_values(build.arch, checkpoint=build.checkpoint, parts=build.parts)
    size, free = _bytes(build, folders), free_memory()
    if size > free:
        return _deferred(build, f"{volume(size)} of memory are not free here", option, by_host=True)
    if size + SLACK > free:
        beside = f"{volume(size)} of memory and {volume(SLACK)} beside them"
        return _deferred(build, f"{beside} are not free here", option, by_host=True)
    if size > free_disk(build.folder):
        return _deferred(build, f"{volume(size)} of disk are not free here", option, by_host=True)
    carried = _carried(build)
    return Weights(
        path=PATH,
        source=_source(build),
        write=lambda folder: _write(build, folder, carried),
        fits=lambda folder: (
            all((folder / file.name).is_file() for file in carried) and _fits(build, folder)
        ),
        ask=f"--seed {build.seed or 0}" if build.recorded else "",
    )


def _carried(build: Build) -> list[Path]:
    """The small files without which weights do not answer as their checkpoint does."""
    if build.checkpoint is not None:
        words = pictures = values_in(build.checkpoint)
    else:
        words, pictures = build.parts.get("language"), build.parts.get("encoder")
    files = [words / name for name in WORDS if words is not None]
    files += [pictures / name for name in PICTURES if pictures is not None]
    return [file for file in files if file.is_file()]


def _deferred(build: Build, reason: str, option: str, *, by_host: bool = False) -> Deferred:
    return Deferred(
        path=PATH,
        reason=reason,
        command=build.command(option, *build.options.given()),
        by_host=by_host,
        fits=lambda folder: _fits(build, folder),
    )


def _bytes(build: Build, folders: list[Path]) -> int:
    """Bytes of the weights: those of the checkpoint's own files, fp32 where (in part) seeded."""
    folders = [values_in(build.checkpoint)] if build.checkpoint is not None else folders
    stored = sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
    number = 4 if build.options.dtype is None else dtype_of(build.options.dtype).itemsize
    asked = number * build.arch.parameters
    return stored if build.checkpoint and stored and build.options.dtype is None else asked


def _source(build: Build) -> str:
    """What the values come from, and how they lie on disk."""
    written = f"layout {LAYOUT}"
    if build.options.dtype is not None:
        written += f"; {build.options.dtype}"
    if build.checkpoint is not None:
        return f"checkpoint {_digest(build, values_in(build.checkpoint))}; {written}"
    named = [f"{role} {_digest(build, folder)}" for role, folder in build.parts.items()]
    return ", ".join([*named, f"seed {build.seed or 0}; {written}"])


def _digest(build: Build, folder: Path) -> str:
    """What a checkpoint folder holds, to the last bit: a fine-tuned copy has the same names, sizes
    and shapes."""
    digests: dict[str, str] = {}
    for path in sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")
    ):
        build.progress(f"hashing {path.name}")
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _write(build: Build, folder: Path, carried: list[Path]) -> None:
    build.progress("reading weights" if build.checkpoint or build.parts else "drawing weights")
    model = valued(
        build.arch,
        checkpoint=build.checkpoint,
        parts=build.parts,
        seed=build.seed or 0,
        dtype=None if build.options.dtype is None else dtype_of(build.options.dtype),
    )
    build.progress("writing weights")
    save_weights(model, folder)
    for file in carried:
        shutil.copyfile(file, folder / file.name)


def _fits(build: Build, folder: Path) -> bool:
    try:
        stored = {name: one.shape for name, one in stored_tensors(folder).items()}
    except (UsageError, EnvironmentFault):
        return False
    model = instantiate(build.arch)
    return stored == {name: tuple(p.shape) for name, p in model.named_parameters()}
