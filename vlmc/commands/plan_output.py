"""What `vlmc plan` writes and prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlmc.diagnostics import UsageError

if TYPE_CHECKING:
    from vlmc.hardware.cluster import Cluster
    from vlmc.partition.plan import ParallelPlan, Predicted
    from vlmc.planning.made import Made
    from vlmc.planning.risks import Risks
    from vlmc.planning.sweep import Row, Values

WIDTH = 120
"""Of tables where there is no terminal."""


def check_writable(path: Path) -> None:
    """Raises UsageError where no plan can be written."""
    if path.suffix not in (".yaml", ".yml") or not path.parent.is_dir() or path.is_dir():
        raise UsageError(f"--output {path}: a file that ends in .yaml, in a folder, is expected")


def write(made: Made, path: Path) -> list[Path]:
    """plan.yaml; beside it, where there is a pipeline, its picture, and where DeepSpeed can run the
    plan, its config."""
    from vlmc.emit.parallel import deepspeed
    from vlmc.planning.document import text_of
    from vlmc.planning.played import picture

    texts = {path: text_of(made.plan), path.with_suffix(".svg"): picture(made)}
    if deepspeed.refusal(made.plan) is None:
        texts[path.with_name(deepspeed.FILE)] = deepspeed.text_of(made.plan)
    found = {file: text for file, text in texts.items() if text is not None}
    for file, text in found.items():
        file.write_text(text, encoding="utf-8")
    return list(found)


def refused(made: Made) -> str | None:
    """Why there is no config for DeepSpeed; None where there is one, or nothing is trained."""
    from vlmc.emit.parallel import deepspeed

    reason = deepspeed.refusal(made.plan) if made.plan.mode == "train" else None
    return None if reason is None else f"no {deepspeed.FILE} for this plan: {reason}"


def print_plan(made: Made, why: bool, risks: Risks | None) -> None:
    """Tables, and reasons in sentences: all of them with `why`."""
    from vlmc.planning import show

    typer.echo(show.headline(made))
    print_tables(list(show.tables(made)))
    if why:
        print_tables([show.alternatives(made)])
    for line in made.found.why if why else made.found.why[:3]:
        typer.echo(line)
    for line in [] if risks is None else risks.lines():
        typer.echo(line)


def sound(plan: ParallelPlan, predicted: Predicted, cluster: Cluster) -> str:
    """What is said of an edited plan without a mistake."""
    from vlmc.partition.why import seconds
    from vlmc.planning.weighed import fullest

    mesh, room = plan.mesh, cluster.device.memory_bytes
    what = "a step" if plan.mode == "train" else "all answers"
    return (
        f"sound. {plan.design} on {mesh.pipeline} x {mesh.data} x {mesh.tensor} ranks, "
        f"{len(plan.stages)} stages: {fullest(predicted)[1].total / 1e9:.1f} of "
        f"{room / 1e9:.1f} GB on the fullest device, {seconds(predicted.step_seconds)} for {what}"
    )


def print_sweep(swept: Sequence[Values], found: Sequence[Row]) -> None:
    """The table, and why there is no plan for some combinations."""
    from vlmc.planning.show import sweep_table

    print_tables([sweep_table(swept, found)])
    for row in found:
        if row.fault:
            typer.echo(f"no plan for {', '.join(row.chosen)}: {row.fault}")


def print_tables(tables: list[Any]) -> None:
    """As wide as the terminal, if there is one."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in tables:
        console.print(table)
