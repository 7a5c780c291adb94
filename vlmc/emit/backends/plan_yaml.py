"""plan.yaml: how the design is run on its target, as `vlmc plan` finds it."""

from __future__ import annotations

from vlmc.emit.artifact import Build, Deferred, Text
from vlmc.emit.parallel import deepspeed
from vlmc.emit.reports import kept_reports
from vlmc.planning.asked import asked
from vlmc.planning.document import NAME, text_of
from vlmc.planning.made import Made, make
from vlmc.planning.reports import Reports


def made(build: Build) -> Made | None:
    """The plan of a build that asks for one; None where none is asked for, or nothing says which
    devices it is for. Raises SpecError where none fits, UsageError where what the target asks is
    not planned."""
    if "plan" not in build.spec.artifacts or build.design.target is None:
        return None
    build.progress("planning")
    reports = Reports(kept_reports(build.note))
    return make(asked(build.design, build.arch), source=build.design.source, reports=reports)


def emit(build: Build) -> list[Text]:
    """The plan and, where DeepSpeed can run it, its config; nothing where no plan is asked for, or
    nothing says which devices it is for."""
    found = made(build)
    if found is None:
        return []
    plan = Text(path=NAME, text=text_of(found.plan))
    if deepspeed.refusal(found.plan) is not None:
        return [plan]
    path = f"parallel/{deepspeed.FILE}"
    return [plan, Text(path=path, text=deepspeed.text_of(found.plan))]


def absent(build: Build) -> Deferred | None:
    """Why a plan that is asked for is not there."""
    if "plan" not in build.spec.artifacts or build.design.target is not None:
        return None
    twin_alone = build.mini and build.design is build.spec
    return Deferred(
        path=NAME,
        reason="the folder of a twin does not name the target of its design"
        if twin_alone
        else "the spec has no target: give one such as {hardware: a100-80gb, count: 8}",
        command=f"vlmc plan {build.origin}{' --mini' * build.mini} --output {NAME}",
    )
