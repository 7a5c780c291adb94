"""plan.yaml: how the design is run on its target, as `vlmc plan` finds it."""

from __future__ import annotations

from vlmc.emit.artifact import Build, Deferred, Text
from vlmc.planning.asked import asked
from vlmc.planning.document import NAME, text_of
from vlmc.planning.made import Made, make


def made(build: Build) -> Made | None:
    """The plan of a build that asks for one; None where none is asked for, or nothing says which
    devices it is for. Raises SpecError where none fits, UsageError where what the target asks is
    not planned."""
    if "plan" not in build.spec.artifacts or build.spec.target is None:
        return None
    build.progress("planning")
    return make(asked(build.spec, build.arch), source=build.spec.source)


def emit(build: Build) -> Text | Deferred | None:
    """The plan as a file, or why there is none; None where none is asked for."""
    if "plan" not in build.spec.artifacts:
        return None
    plan = made(build)
    if plan is not None:
        return Text(path=NAME, text=text_of(plan.plan))
    return Deferred(
        path=NAME,
        reason="the twin has no target" if build.mini else "the spec has no target",
        command=f"vlmc plan {build.origin}{' --mini' * build.mini} --output {NAME}",
    )
