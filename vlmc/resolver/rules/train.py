"""Rules about what is trained."""

from __future__ import annotations

from collections.abc import Iterator

from vlmc.diagnostics import Problem
from vlmc.resolver.flow import Flow
from vlmc.spec.document import PARTS


def has_parameters(flow: Flow, part: str) -> bool | None:
    """Whether a part has parameters of its own; None where that is not known."""
    if flow.language is None or flow.seen is None or flow.visual is None:
        return None
    if part == "encoder" and flow.encoder is not None:
        return sum(flow.encoder.parameters().values()) > 0
    if part == "adapter" and flow.adapter is not None:
        return sum(flow.adapter.parameters(flow.seen, flow.language).values()) > 0
    if part == "fusion" and flow.fusion is not None:
        return sum(flow.fusion.parameters(flow.visual, flow.language).values()) > 0
    if part == "head" and flow.head is not None:
        return sum(flow.head.parameters(flow.language).values()) > 0
    return True if part == "language" else None


def something_trains(flow: Flow) -> Iterator[Problem]:
    """A design that is to be trained has something to train. Where stages are given, each of them
    answers for itself."""
    if flow.target is None or flow.target.workload.mode != "train":
        return
    if flow.training is not None and flow.training.stages:
        return
    for part in PARTS:
        component = getattr(flow, part)
        if component is None:
            return
        if not component.frozen and has_parameters(flow, part) is not False:
            return
    yield Problem(
        code="VLMC140",
        path=("target", "workload", "mode"),
        message="nothing is left to train: every part with parameters is frozen",
        expected="at least one part with `frozen: false` and parameters of its own",
        got=", ".join(f"{part}: {_state(flow, part)}" for part in PARTS),
        help="adapter: {frozen: false}",
    )


def _state(flow: Flow, part: str) -> str:
    return "no parameters" if has_parameters(flow, part) is False else "frozen"


def stages_name_parts(flow: Flow) -> Iterator[Problem]:
    """A training stage optimises something, and nothing that the design freezes."""
    if flow.training is None:
        return
    names: set[str] = set()
    for index, stage in enumerate(flow.training.stages):
        if stage.name in names:
            yield Problem(
                code="VLMC012",
                path=("training", "stages", index, "name"),
                message=f"two stages are called `{stage.name[:60]}`",
                expected="a name of its own for each stage",
                got=stage.name[:60],
                help=f"name: {stage.name[:60]}-{index + 1}",
            )
        names.add(stage.name)
        if all(has_parameters(flow, part) is False for part in stage.train):
            yield Problem(
                code="VLMC141",
                path=("training", "stages", index, "train"),
                message=f"the stage `{stage.name}` trains only parts that have no parameters",
                expected="a part with parameters of its own",
                got=", ".join(stage.train),
                help="train: [adapter]",
            )
        for part in stage.train:
            component = getattr(flow, part)
            if component is not None and component.frozen:
                yield Problem(
                    code="VLMC141",
                    path=("training", "stages", index, "train"),
                    message=f"the stage `{stage.name}` trains the {part}, which is frozen",
                    expected="parts that are not frozen",
                    got=", ".join(stage.train),
                    help=f"{part}: {{frozen: false}}",
                )
