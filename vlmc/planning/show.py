"""A plan for people: Rich tables. rich is imported by whoever prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from vlmc.diagnostics.amount import count, volume
from vlmc.partition.plan import Mesh, ParallelPlan, PlannedStage
from vlmc.partition.schedule import most_held
from vlmc.partition.solve import Solved
from vlmc.partition.why import seconds as duration
from vlmc.planning.asked import WRITTEN
from vlmc.planning.compare import Line
from vlmc.planning.made import Made
from vlmc.planning.sweep import Row, Values, front

CATEGORIES = (
    "weights", "gradients", "optimiser", "activations", "cache", "vision", "buffers", "reserve",
)  # fmt: skip


def headline(made: Made) -> str:
    """What is planned, for what, in two lines."""
    plan, asked = made.plan, made.asked
    work = f"{plan.batch} sequences"
    if plan.mode == "train":
        stage = f", stage {asked.stage}" if asked.stage else ""
        trained = ", ".join(plan.trained) or "nothing"
        what = f"train {trained} with {plan.optimiser}{stage}; steps of {work}"
    else:
        tokens = asked.request.generate
        each = f"{tokens} tokens each" if tokens else "one answer each"
        what = f"serve {work} at once, {each}"
    device = asked.cluster.device
    rates = "measured" if device.efficiency.measured else "assumed"
    solved = "" if made.solved is None else f"\n{_solved(made, made.solved)}"
    return (
        f"{plan.design} on {plan.count} x {plan.hardware} in {plan.precision}: {what} "
        f"({plan.text} text tokens, {plan.images} images)\n"
        f"{count(asked.arch.parameters)} parameters; efficiency of the device: {rates}"
        f"{solved}"
    )


def _solved(made: Made, solved: Solved) -> str:
    """The answer to what is `auto`."""
    key = WRITTEN[made.asked.auto] if made.asked.auto else ""
    if solved.refused is None:
        return f"{key}: {solved.value:,}, all that the context holds"
    return f"{key}: {solved.value:,}. {solved.refused:,} would not do: {solved.reason}"


def tables(made: Made) -> Iterator[Table]:
    """Devices and what they hold; degrees; memory; time."""
    yield _groups(made)
    yield _degrees(made.plan)
    yield _memory(made)
    if made.plan.mode == "train":
        yield _activations(made.plan)
    yield _time(made)


def _groups(made: Made) -> Table:
    plan = made.plan
    table = Table("group", "ranks", "holds", "checkpointing", "in flight", title="Devices")
    size = plan.count // plan.mesh.pipeline
    for group in range(plan.mesh.pipeline):
        stages = [stage for stage in plan.stages if stage.group == group]
        ranks = f"{group * size}-{(group + 1) * size - 1}" if size > 1 else str(group)
        held = [name for stage in stages for name in _blocks(stage)]
        kept = {
            f"{plan.checkpointing[one.block]} ({one.block})"
            for stage in stages
            for one in stage.holds
            if one.block in plan.checkpointing
        }
        table.add_row(
            str(group),
            ranks,
            "\n".join(held),
            "\n".join(sorted(kept)) or "none",
            _flight(plan, group),
        )
    return table


def _blocks(stage: PlannedStage) -> Iterator[str]:
    """A stage's ranges, those of one stack joined: gated blocks stand between layers."""
    ranges: dict[str, list[int]] = {}
    for held in stage.holds:
        first, last = ranges.setdefault(held.block, [held.first, held.last])
        ranges[held.block] = [min(first, held.first), max(last, held.last)]
    for name, (first, last) in ranges.items():
        if "*" in name:
            yield f"{name.replace('*', str(first) if first == last else f'{first}-{last}')}"
        else:
            yield name


def _flight(plan: ParallelPlan, group: int) -> str:
    """The most micro-batches whose activations a group holds."""
    if plan.mode != "train":
        return "1"
    held = most_held(plan.schedule, group, plan.mesh.pipeline, plan.micro_batches, plan.chunks)
    return str(held or plan.micro_batches * plan.chunks)


def _degrees(plan: ParallelPlan) -> Table:
    table = Table("component", "tensor", "pipeline", "data", "ZeRO", "sequence parallel",
                  title="Degrees")  # fmt: skip

    def row(name: str, mesh: Mesh, *, shares: bool) -> None:
        sharded = f"{plan.zero}" if plan.mode == "train" else "-"
        sequence = "yes" if shares else "no"
        table.add_row(name, str(mesh.tensor), str(mesh.pipeline), str(mesh.data), sharded, sequence)

    row(f"encoder, adapter ({plan.placement})", plan.encoder or plan.mesh, shares=False)
    row("language model", plan.mesh, shares=plan.sequence_parallel)
    return table


def _memory(made: Made) -> Table:
    plan, room = made.plan, made.asked.cluster.device.memory_bytes
    rows = plan.predicted.memory if plan.predicted else ()
    shown = [name for name in CATEGORIES if any(getattr(one, name) for one in rows)]
    unit, size = ("MB", 1e6) if all(one.total < 1e9 for one in rows) else ("GB", 1e9)
    table = Table("group", title=f"Memory of a device, {unit} of {room / size:,.6g}")
    for name in (*shown, "total", "used"):
        table.add_column("KV cache" if name == "cache" else name, justify="right")
    for group, one in enumerate(rows):
        sizes = [f"{getattr(one, name) / size:,.2f}" for name in shown]
        table.add_row(str(group), *sizes, f"{one.total / size:,.2f}", f"{one.total / room:.0%}")
    return table


def _activations(plan: ParallelPlan) -> Table:
    table = Table("stage", "group", title="Activations that a stage keeps")
    for name in ("of a micro-batch", "in flight", "together"):
        table.add_column(name, justify="right")
    for number, one in enumerate(plan.predicted.kept if plan.predicted else ()):
        table.add_row(
            str(number), str(plan.stages[number].group), volume(one.bytes), f"{one.in_flight:.4g}",
            volume(int(one.bytes * one.in_flight)),
        )  # fmt: skip
    return table


def _time(made: Made) -> Table:
    plan = made.plan
    table = Table("part", "time", "what", title="Time")
    predicted = plan.predicted
    if predicted is None:
        return table
    whole = "a step" if plan.mode == "train" else "all answers"
    busiest = "busiest group" if plan.mode == "train" else "busiest group, prompts"
    table.add_row("compute", duration(predicted.compute_seconds), busiest)
    if predicted.token_compute_seconds:
        seconds = duration(predicted.token_compute_seconds)
        table.add_row("compute", seconds, "busiest group, tokens of answers")
    for one in predicted.collectives:
        what = f"{volume(one.bytes)} over {one.group} ranks: {one.purpose}"
        table.add_row(f"{one.kind.replace('_', '-')}, not hidden", duration(one.seconds), what)
    table.add_row("bubble", duration(predicted.bubble_seconds), _bubble(plan))
    if predicted.token_bubble_seconds:
        seconds = duration(predicted.token_bubble_seconds)
        table.add_row("bubble", seconds, "waiting in the pipeline for tokens of answers")
    table.add_row(whole, duration(predicted.step_seconds), _schedule(plan), style="bold")
    if predicted.mfu is not None:
        of = "" if plan.mode == "train" else " of the prompts"
        table.add_row("MFU", f"{predicted.mfu:.1%}", f"share of the peak rate{of}")
    for name, value, what in _serving(plan):
        table.add_row(name, value, what)
    return table


def _bubble(plan: ParallelPlan) -> str:
    predicted = plan.predicted
    whole = predicted.step_seconds if predicted else 0
    if plan.mode != "train":
        return "waiting in the pipeline for prompts"
    if not predicted or not whole:
        return "waiting in the pipeline"
    return f"waiting in the pipeline: {predicted.bubble_seconds / whole:.1%} of the step"


def _schedule(plan: ParallelPlan) -> str:
    if plan.mode != "train":
        return f"{plan.batch} sequences"
    words = f"{plan.micro_batches} micro-batches of {plan.micro_batch}"
    if plan.mesh.pipeline == 1:
        return words
    chunks = f", {plan.chunks} stages a group" if plan.chunks > 1 else ""
    return f"{plan.schedule}{chunks}, {words}"


def _serving(plan: ParallelPlan) -> Iterator[tuple[str, str, str]]:
    found = plan.predicted
    if found is None or plan.mode != "serve":
        return
    if found.first_token_seconds is not None:
        yield "first token", duration(found.first_token_seconds), "of the last sequence"
    if found.token_seconds is not None:
        rate = plan.batch / found.token_seconds if found.token_seconds else 0
        yield "token", duration(found.token_seconds), f"{rate:,.0f} tokens a second in all"
    if found.images_per_second is not None:
        yield "images", f"{found.images_per_second:,.2f}", "a second"
    if found.largest_batch is not None:
        yield "largest batch", f"{found.largest_batch:,}", "sequences at once with these degrees"
    if found.cost_per_million_tokens is not None:
        yield "cost", f"{found.cost_per_million_tokens:,.2f}", "for a million tokens generated"


def alternatives(made: Made) -> Table:
    """The plan beside the next ones."""
    table = Table("", "pipeline", "data", "tensor", "ZeRO", "schedule", "encoder", "time",
                  "GB", title="The plan and the next ones")  # fmt: skip
    for place, plan in enumerate((made.plan, *made.found.alternatives)):
        found = plan.predicted
        most = max((one.total for one in found.memory), default=0) if found else 0
        table.add_row(
            "chosen" if place == 0 else str(place + 1),
            *(str(degree) for degree in (plan.mesh.pipeline, plan.mesh.data, plan.mesh.tensor)),
            str(plan.zero),
            _schedule(plan),
            plan.placement,
            duration(found.step_seconds) if found else "",
            f"{most / 1e9:.1f}",
        )
    return table


def sweep_table(swept: Sequence[Values], found: Sequence[Row]) -> Table:
    """A row for each combination; those on the front are marked."""
    best = front(found)
    table = Table(title="Sweep: * is on the Pareto front; ranks are pipeline x data x tensor")
    ends = [key.rpartition(".")[2] for key, _ in swept]
    for (key, _), end in zip(swept, ends, strict=True):
        table.add_column(end if ends.count(end) == 1 else key, overflow="fold")
    for name in ("", "parameters", "visual tokens", "ranks", "GB", "time", "sequences a second",
                 "device seconds each"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=name in ("", "ranks", "time"))
    for number, row in enumerate(found):
        chosen = [word.partition("=")[2] for word in row.chosen]
        figures = row.figures()
        if not figures:
            table.add_row(*chosen, "", "no plan")
            continue
        table.add_row(
            *chosen,
            "*" if number in best else "",
            count(figures["parameters"]),
            f"{figures['visual_tokens']:,}",
            f"{figures['pipeline']}x{figures['data']}x{figures['tensor']}",
            f"{figures['memory_gb']:.1f}",
            duration(figures["seconds"]),
            f"{figures['sequences_per_second']:.3g}",
            f"{figures['device_seconds_per_sequence']:.3g}",
            style="bold" if number in best else None,
        )
    return table


def difference_table(one: str, two: str, lines: Sequence[Line], *, every: bool) -> Table:
    """What differs between two designs, or everything, with what differs in bold."""
    table = Table("", "", one, two, "ratio")
    former = ""
    for line in lines:
        if not (every or line.differs):
            continue
        heading = "" if line.section == former else line.section
        if heading and former:
            table.add_section()
        former = line.section
        ratio = f"{line.ratio:.3g}" if line.differs and line.ratio is not None else ""
        style = "bold" if line.differs and every else None
        table.add_row(heading, line.name, *line.shown, ratio, style=style)
    return table
