"""The laptop-size twin of a design on the design's target."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vlmc.diagnostics import SpecError
from vlmc.ir import Arch
from vlmc.resolver import check, flow, resolve
from vlmc.resolver.flow import sections_of
from vlmc.spec.document import ModelSpec
from vlmc.spec.loader import load


def twin_of(spec: ModelSpec) -> Arch:
    """The twin of a design, whose target is another matter."""
    return resolve(spec.model_copy(update={"target": None}), mini=True)


def load_for_twin(path: Path, overrides: Iterable[str] = ()) -> ModelSpec:
    """The design in a spec file, whose twin is to be planned: the target is held to the rules with
    the twin and not with the design, which may be too large for it.

    Raises SpecError with every diagnostic, UsageError where there is no such file.
    """
    draft = load(path, overrides)
    target = draft.sections.pop("target", None)
    found = draft.diagnostics(check(flow(draft.sections)))
    if found:
        raise SpecError(found)
    if target is None:
        return draft.spec()
    draft.sections["target"] = target
    spec = draft.spec()
    twin = spec.mini().model_copy(update={"target": target})
    broken = [one for one in check(flow(sections_of(twin))) if one.code != "VLMC131"]
    found = [draft.source.locate(problem) for problem in broken]
    if found:
        raise SpecError(found)
    return spec
