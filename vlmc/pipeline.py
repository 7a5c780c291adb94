"""The compiler from top to bottom, and the Python API: one function for each arrow.

    path -load_spec-> ModelSpec -resolve-> Arch -build_model-> nn.Module
                                           Arch -emit-> artifacts -write-> Manifest

torch and the emitters are imported where they are first needed and not above: a design is
validated in a fraction of the time that importing torch takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlmc.call import (
    as_options,
    check_compatible,
    command,
    listed,
    origin,
    path_of,
    spec_file,
    to_folder,
    wanted,
)
from vlmc.diagnostics import SpecError, UsageError
from vlmc.ir import Arch
from vlmc.ir import verify as verified
from vlmc.planning.twin import load_for_twin, twin_of
from vlmc.resolver import check as broken_rules
from vlmc.resolver import flow
from vlmc.resolver import resolve as infer
from vlmc.spec.document import ModelSpec
from vlmc.spec.loader import load

if TYPE_CHECKING:
    import torch
    from torch import nn

    from vlmc.emit.artifact import Build, Progress
    from vlmc.emit.check import Stale
    from vlmc.emit.manifest import Manifest
    from vlmc.emit.options import Said
    from vlmc.emit.verify.verdict import Verdict

    Hear = Callable[[str], None]


def load_spec(path: str | Path, overrides: Iterable[str] = ()) -> ModelSpec:
    """The design in a spec file (or in a build folder), with `key.path=value` overrides on top.

    Raises SpecError with every diagnostic of the file at once, those of its text, its types and
    the rules across its parts; UsageError where there is no such file or an override is malformed.
    """
    draft = load(spec_file(path), listed(overrides))
    found = draft.diagnostics(broken_rules(flow(draft.sections)))
    if any(diagnostic.severity == "error" for diagnostic in found):
        raise SpecError(found)
    return draft.spec()


def resolve(spec: ModelSpec, *, mini: bool = False) -> Arch:
    """The design with everything inferred: widths, tokens, parameters; its laptop-size twin with
    `mini`. Needs no torch. Raises SpecError where a rule is broken."""
    return verified(infer(spec, mini=mini))


def load_resolved(
    path: str | Path, overrides: Iterable[str] = (), *, mini: bool = False
) -> tuple[ModelSpec, Arch]:
    """The design in a spec file or a build folder, resolved; of a spec file with `mini` its twin,
    which is then held to the target's rules in the place of the design. Raises as `load_spec`."""
    source = path_of(path)
    if mini and source.is_file():
        spec = load_for_twin(source, listed(overrides))
        return spec, verified(twin_of(spec))
    spec = load_spec(path, overrides)
    return spec, resolve(spec, mini=mini)


def build_model(
    spec: ModelSpec,
    checkpoint: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    *,
    mini: bool = False,
    seed: int = 0,
) -> nn.Module:
    """The model of a design, with values, in evaluation mode.

    Values come from `checkpoint` (a Hugging Face folder with config.json and safetensors, or a
    build folder with weights), else from the folders that the spec names under `weights`, else
    from `seed`. `dtype` is torch's or fp32, bf16 or fp16; None is fp32.

    Raises SpecError where a rule is broken, UsageError where a folder is no checkpoint of the
    design or there are no such device and dtype, EnvironmentFault where a file is damaged or this
    machine lacks the device.
    """
    from vlmc.builder.values import valued
    from vlmc.runtime.placement import device_of, dtype_of

    place, number = device_of(str(device), "device"), dtype_of(dtype)
    model = valued(
        resolve(spec, mini=mini),
        checkpoint=None if checkpoint is None else Path(checkpoint),
        parts={} if mini else spec.weight_folders,
        seed=seed,
        device=place,
        dtype=number,
    )
    return model.eval()


def plan(
    path: str | Path,
    output: str | Path | None,
    overrides: Iterable[str],
    mini: bool,
    *,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    options: Said = None,
    progress: Progress | None = None,
    tell: Hear | None = None,
    note: Hear | None = None,
) -> Build:
    """What the emitters are given: the options of `build`, and its stages as far as an `Arch`."""
    from vlmc.emit import options as choices
    from vlmc.emit.artifact import Build, silent, unheard
    from vlmc.emit.manifest import Manifest

    path, overrides, stage = path_of(path), listed(overrides), progress or silent
    check_compatible(mini, checkpoint, seed)
    again = Manifest.read(path) if path.is_dir() else None
    stage("loading")
    twin_already = again is not None and again.mini  # its spec is the twin's
    spec, arch = load_resolved(path, overrides, mini=mini and not twin_already)
    if twin_already:
        arch, spec_of_build, mini = replace(arch, mini=True), spec, True
    else:
        spec_of_build = spec.mini() if mini else spec
    if output is None:
        stem = f"{path.stem}-mini" if mini else path.stem
        output = Path("generated") / stem if again is None else path
    recorded = False
    if seed is None and checkpoint is None and again is not None:
        seed, recorded = again.seed, True
    if seed is None and mini and checkpoint is None:
        seed = 0
    parts = spec_of_build.weight_folders
    chosen = choices.settle(
        options,
        choices.Options(**({} if again is None else again.options)),
        spec_of_build.artifacts,
        valued=seed is not None or checkpoint is not None or bool(parts),
    )
    return Build(
        spec=spec_of_build,
        arch=arch,
        design=spec,
        origin=" ".join((origin(path) if again is None else again.origin, *as_options(overrides))),
        mini=mini,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        seed=seed,
        recorded=recorded,
        parts=parts,
        folder=Path(output),
        options=chosen,
        progress=stage,
        tell=tell or unheard,
        note=note or unheard,
    )


def build(
    path: str | Path,
    output: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    mini: bool = False,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    artifacts: Iterable[str] | None = None,
    options: Said = None,
    progress: Progress | None = None,
    tell: Hear | None = None,
    note: Hear | None = None,
) -> Manifest:
    """Compiles a spec file into a folder: every stage, in order.

    `output` is `generated/<spec>` by default (`generated/<spec>-mini` for the twin). Weights come
    from `checkpoint`, from the folders that the spec names, or from `seed` (0 for a twin);
    otherwise they are deferred, and the manifest says so. `artifacts` are made in place of those
    that the spec names, as `options` say: all of them, or a mapping of those that are to differ
    from what a build folder was made with. Whatever can be executed is executed and compared with
    eager fp32 before the build takes its place. A build folder in the place of a spec file is
    built again from its own spec, with the options that it was made with.

    `progress` is told each stage, `tell` what each pass did to a graph, `note` what a user should
    know though nothing failed.

    Raises SpecError (the design is wrong), UsageError (the call is), EnvironmentFault (this
    machine cannot, or an artifact is not what it should be; what stood at `output` stands there
    still).
    """
    from vlmc.emit.compiling import compiling_in
    from vlmc.emit.fresh import current, laid, remember
    from vlmc.emit.store import store

    overrides = (*listed(overrides), *wanted(artifacts))
    this = plan(
        path,
        output,
        overrides,
        mini,
        checkpoint=checkpoint,
        seed=seed,
        options=options,
        progress=progress,
        tell=tell,
        note=note,
    )
    kept = store(this.note)
    standing = current(this, kept)
    if standing is None:
        with compiling_in(kept):
            standing, settled = _made(this, laid(this, kept))
        remember(this, standing, kept, settled=settled)
        kept.trim()
    return standing.called(command(path, overrides), to_folder(output))


def _made(this: Build, laid: Mapping[str, tuple[int, ...]]) -> tuple[Manifest, bool]:
    """The build, made or found to stand; and whether the next one could only be the same."""
    from vlmc.builder.model import instantiate
    from vlmc.emit import catalog
    from vlmc.emit.fresh import settled
    from vlmc.emit.manifest import Manifest
    from vlmc.emit.verify import verifier
    from vlmc.emit.verify.finite import blaming_weights
    from vlmc.emit.writer import write

    this.progress("building")
    instantiate(this.arch)  # on meta: each body is checked against its type
    this.progress("emitting")
    artifacts = [*catalog.texts(this), *catalog.uncommitted(this)]
    manifest = write(
        this.folder,
        artifacts,
        partial(Manifest.of, this),
        laid=laid,
        verify=blaming_weights(verifier(this)),
        progress=this.progress,
    )
    return manifest, settled(artifacts, manifest)


def check(
    path: str | Path,
    output: str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    mini: bool = False,
    artifacts: Iterable[str] | None = None,
) -> list[Stale]:
    """What of the committed outputs of a spec is not what a build of today would write, each with
    the command that refreshes it.

    Writes nothing. Raises as `build` does.
    """
    from vlmc.emit.check import compare

    overrides = (*listed(overrides), *wanted(artifacts))
    refreshed = command(path, overrides, mini=mini) + to_folder(output)
    return compare(plan(path, output, overrides, mini), refreshed)


def verify(
    folder: str | Path, *, progress: Progress | None = None, note: Hear | None = None
) -> Verdict:
    """Hashes every file of a build, then executes its artifacts and compares them with eager fp32;
    writes what it measured into the folder's verification.json; where it cannot, `note` is told.

    Raises UsageError where there is no build at `folder`, EnvironmentFault where an artifact cannot
    be executed.
    """
    from vlmc.emit.manifest import Manifest
    from vlmc.emit.verify.verdict import examine

    if not Path(folder).is_dir():
        raise UsageError(f"{folder}: there is no such folder; `vlmc verify` takes a build folder")
    manifest = Manifest.read(Path(folder))
    return examine(
        manifest, partial(plan, folder, folder, (), mini=False, progress=progress, note=note)
    )
