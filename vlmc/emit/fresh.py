"""Whether a build stands as it would be made now, without making any of it, nor loading torch.

After a build, what it followed from and its files as they lay (size, times, inode) are noted in the
user's cache. While neither has changed, there is nothing to build.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmc.emit.artifact import Artifact, Build, Deferred, Graphs
from vlmc.emit.backends import spec_resolved
from vlmc.emit.beside import beside
from vlmc.emit.manifest import MEASURED, NAME, Manifest, UnreadableManifest
from vlmc.emit.recipe import digest, source, stats, values_in, versions
from vlmc.emit.record import Lying, lying
from vlmc.emit.room import holds_twice
from vlmc.emit.store import Store
from vlmc.hardware import Device, device
from vlmc.hardware.processor import processor_says

PACKAGES = ("torch", "onnx", "onnxruntime", "libcst", "ruff", "numpy")


def current(build: Build, store: Store) -> Manifest | None:
    """The build that stands at the folder of `build`, if it is what would be made now."""
    try:
        note: Any = json.loads(_note(build, store).read_bytes())
        if note["follows_from"] != _cause(build):
            return None
        if note["files"] != _files(build.folder, note["files"]):
            return None
        if _on_twin(build.folder) and holds_twice(build.arch):
            return None
        return Manifest.read(build.folder).at(build.folder, unchanged=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UnreadableManifest):
        return None


def laid(build: Build, store: Store) -> Mapping[str, Lying]:
    """How the files of the last build of the folder lay when it ended; nothing where none is
    known."""
    try:
        files: Any = json.loads(_note(build, store).read_bytes())["files"]
        return {str(name): tuple(map(int, one)) for name, one in files.items() if one is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def settled(artifacts: Iterable[Artifact], manifest: Manifest) -> bool:
    """Whether the next build could only be the same: nothing is missing for want of what this
    machine has now."""
    return not any(_by_host(one, manifest) for one in artifacts)


def _by_host(artifact: Artifact, manifest: Manifest) -> bool:
    if isinstance(artifact, Graphs):
        missing = manifest.artifacts[artifact.path].status == "deferred"
        return missing and artifact.put_off(manifest.artifacts) is None
    return isinstance(artifact, Deferred) and artifact.by_host


def remember(build: Build, manifest: Manifest, store: Store, *, settled: bool = True) -> None:
    """Notes that `manifest` stands at the folder of `build`, and whether the next build could only
    be the same (`settled`). Where the cache cannot be written, that one looks at everything
    again."""
    note = _note(build, store)
    with suppress(OSError):
        files = _files(build.folder, (*manifest.files, NAME, MEASURED))
        text = json.dumps({"follows_from": _cause(build) if settled else None, "files": files})
        note.parent.mkdir(parents=True, exist_ok=True)
        store.unfinished.mkdir(exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix="vlmc-", dir=store.unfinished)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, note)


def _on_twin(folder: Path) -> bool:
    """Whether artifacts were measured on the design's twin, for want of memory."""
    try:
        found: Any = json.loads((folder / MEASURED).read_bytes())
    except FileNotFoundError:
        return False
    return any(engine["measured"] == "twin" for engine in found["engines"].values())


def _note(build: Build, store: Store) -> Path:
    return store.builds / f"{digest(os.path.realpath(build.folder))}.json"


def _cause(build: Build) -> str:
    """The hash of everything that a build follows from: the design and how it is called, vlmc and
    what it works with, the values that it reads, and the machine."""
    checkpoint = None if build.checkpoint is None else values_in(build.checkpoint)
    folders = [checkpoint, *build.parts.values()]
    return digest(
        source(),
        versions(*PACKAGES),
        sys.version,
        spec_resolved.source(build),
        build.design.target,
        build.origin,
        build.mini,
        build.seed,
        build.options,
        beside(build),
        _device(build),
        [None if folder is None else stats(folder) for folder in folders],
        machine(),
        os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def _device(build: Build) -> Device | None:
    """The figures of the target's device, which may stand in a file of the user's."""
    target = build.design.target
    return None if target is None else device(target.hardware)


def machine() -> str:
    """What artifacts made here may depend on: the processor's features, and whether there is a GPU
    at all."""
    flags = processor_says("flags", "Features") or ""
    return digest(platform.system(), platform.machine(), flags, Path("/dev/nvidiactl").exists())


def _files(folder: Path, names: Iterable[str]) -> dict[str, list[int] | None]:
    found: dict[str, list[int] | None] = {}
    for name in names:
        try:
            found[name] = [*lying(folder / name)]
        except FileNotFoundError:
            found[name] = None
    return found
