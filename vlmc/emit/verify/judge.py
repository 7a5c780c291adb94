"""From a build to what its artifacts compute, and how far that is from eager."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.artifact import Build
from vlmc.emit.manifest import Manifest
from vlmc.emit.options import Dtype
from vlmc.emit.recipe import digest, source, versions
from vlmc.emit.room import holds_twice
from vlmc.emit.verify.engines import ENGINES, Runtime, opened, runs
from vlmc.emit.verify.measure import Trace, compare, trace
from vlmc.emit.verify.record import Measured, Verification, Verified
from vlmc.emit.verify.subject import Subject, measurable, number_format, threads
from vlmc.hardware.processor import processor_says
from vlmc.runtime.describe import describe

TOLERANCES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
"""The largest error of an engine, relative to eager fp32, by the number format of its weights."""

SOURCES = ("emit/verify", "runtime")
"""The parts of vlmc that measure, beside those that an artifact is made by."""


class Unsound(EnvironmentFault):
    """An artifact that does not compute what the model computes."""


def verifier(build: Build) -> Callable[[Path, Manifest, bytes | None], bytes | None]:
    """What the writer asks about a new build before it takes the place of the old one. What was
    measured here of an artifact that is the same still, as is all that figures follow from, is not
    measured again."""

    def judge(folder: Path, manifest: Manifest, before: bytes | None) -> bytes | None:
        former = Verification.parse(before)
        here = former is not None and former.host == _host()
        known: dict[str, Verified] = {}
        for name in _present(folder, manifest):
            found = former.engines.get(name) if former is not None and here else None
            if found is not None and _holds(found, ENGINES[name], build, folder, manifest):
                known[name] = found
        measured = verify(build, folder, manifest, known)
        for name, found in measured.engines.items():
            if not found.sound:
                raise Unsound(complaint(name, found))
        if not measured.engines:
            return None
        return before if measured == former else measured.text().encode()

    return judge


def complaint(name: str, found: Verified) -> str:
    """What is wrong with an artifact, by its name."""
    worst = max(found.cases, key=lambda case: getattr(case, found.judged))
    if found.judged == "mean_relative":
        return (
            f"{found.artifact}/, quantised: with the engine {name} logits are off eager fp32 by "
            f"{found.error:.2g} of their standard deviation on average, and {found.tolerance:.2g} "
            "is allowed; --max-error sets another bound, and without --quantize nothing is lost"
        )
    return (
        f"{found.artifact}/ does not compute what the model does: with the engine {name} "
        f"{worst.graph} is {found.error:.1e} off eager fp32 ({worst.case}), relative to its "
        f"largest number, and {found.tolerance:.0e} is allowed"
    )


def verify(
    build: Build,
    folder: Path,
    manifest: Manifest,
    known: Mapping[str, Verified],
) -> Verification:
    """Everything about the artifacts of `manifest`, which lie in `folder`: what is `known`, and the
    rest measured. Raises Unsound for an artifact that cannot be executed at all."""
    engines = dict(known)
    wanted = [name for name in _present(folder, manifest) if name not in known]
    if wanted:
        with measurable(build, folder) as subject, threads(subject.size):
            expected = [trace(subject.eager, case, None) for case in subject.cases]
            for name in wanted:
                runtime = ENGINES[name]
                build.progress(f"verifying {name}")
                found = _measure(name, subject, expected, build)
                engines[name] = Verified(
                    artifact=runtime.artifact,
                    follows_from=_cause(runtime, build, manifest),
                    measured=subject.measured,
                    judged=runtime.judged,
                    tolerance=_tolerance(runtime, folder, subject.dtype),
                    max_abs=max(one.max_abs for one in found),
                    max_relative=max(one.max_relative for one in found),
                    mean_relative=max(one.mean_relative for one in found),
                    tokens=_agreement(found),
                    runtime=runtime.executed,
                    cases=tuple(found),
                )
            plain = [one for name in wanted if (one := engines[name]).judged == "max_relative"]
            if subject.dtype != "fp32" and not all(one.sound for one in plain):
                # Whatever may go wrong in it: what is wrong with the artifact is to be said.
                with suppress(EnvironmentFault, RuntimeError):
                    build.note(_format_alone(subject, expected))
    ordered = {name: engines[name] for name in ENGINES if name in engines}
    return Verification(host=_host(), engines=ordered)


def _cause(runtime: Runtime, build: Build, manifest: Manifest) -> str:
    """The hash of all that the figures of an artifact follow from. Its own files are not enough:
    graphs hold no weights, and the same bytes may compute something else in another version of what
    executes them, or be compared with something else in another version of torch."""
    status = manifest.artifacts[runtime.artifact]
    return digest(
        status.inputs,
        [f"{name} {manifest.files[name].sha256}" for name in sorted(status.files)],
        describe(build.spec, build.arch),
        source(*SOURCES),
        versions("torch", "numpy", runtime.package),
    )


def _present(folder: Path, manifest: Manifest) -> list[str]:
    """The engines that have something to execute in a build."""
    return [
        name
        for name, runtime in ENGINES.items()
        if (status := manifest.artifacts.get(runtime.artifact)) is not None
        and status.status == "built"
        and runtime.present(folder)
    ]


def _tolerance(runtime: Runtime, folder: Path, dtype: Dtype) -> float:
    """The largest error that is allowed. That of quantised graphs was chosen when they were made
    and lies among their files, whose hashes the manifest knows."""
    if runtime.variant is None:
        return TOLERANCES[dtype]
    from vlmc.emit.onnx.threshold import QUANTISATION

    path = folder / "onnx" / QUANTISATION
    try:
        return float(json.loads(path.read_bytes())[runtime.variant]["allowed"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EnvironmentFault(
            f"{path} does not say how large an error is allowed; build it again"
        ) from None


def _holds(
    found: Verified, runtime: Runtime, build: Build, folder: Path, manifest: Manifest
) -> bool:
    """Whether something sound was measured of the same, in the same way, and by the same bound:
    nobody vouches for what verification.json says is allowed. What was measured on the twin holds
    while there is no room for the design itself."""
    return (
        found.sound
        and (found.measured == "full" or not holds_twice(build.arch))
        and found.follows_from == _cause(runtime, build, manifest)
        and found.runtime == runtime.executed
        and found.judged == runtime.judged
        and found.tolerance == _tolerance(runtime, folder, number_format(folder))
    )


def _measure(name: str, subject: Subject, expected: list[Trace], build: Build) -> list[Measured]:
    try:
        right = dict(zip((case.name for case in subject.cases), expected, strict=True))
        found: list[Measured] = []
        for compiled, cases in runs(ENGINES[name], subject.cases):
            engine = opened(ENGINES[name], subject, cases, compiled=compiled)
            for index, case in enumerate(cases):
                build.progress(f"verifying {name}: {case.name}", index, len(cases))
                answers = right[case.name].tokens()
                found += compare(case, right[case.name], trace(engine, case, answers))
        return found
    except Exception as error:  # each runtime fails in its own way
        said = " ".join(str(error).split())[:400]
        raise Unsound(
            f"{ENGINES[name].artifact}/ cannot be executed by the engine {name}: "
            f"{type(error).__name__}: {said}"
        ) from error


def _format_alone(subject: Subject, expected: list[Trace]) -> str:
    """How far the model itself is from fp32 in the number format of its weights."""
    engine = subject.stored()
    lost = max(
        one.max_relative
        for case, right in zip(subject.cases, expected, strict=True)
        for one in compare(case, right, trace(engine, case, right.tokens()))
    )
    return (
        f"in {subject.dtype} the model itself, eager, is {lost:.1e} off eager fp32, and "
        f"{TOLERANCES[subject.dtype]:.0e} is allowed of its artifacts; --dtype has other formats"
    )


def _agreement(found: list[Measured]) -> float:
    """The share of tokens that agree, over all cases."""
    judged = [(one.tokens, (one.steps + 1) * len(one.lengths)) for one in found]
    known = [(share, weight) for share, weight in judged if share is not None]
    return sum(share * weight for share, weight in known) / max(1, sum(w for _, w in known))


def _host() -> dict[str, str]:
    name = processor_says("model name") or platform.processor() or platform.machine()
    return {"cpu": name, "system": platform.system(), "python": platform.python_version()}
