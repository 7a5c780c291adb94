"""What a plan must hold to so that it can run: rules that `vlmc plan` and train.py share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from vlmc.diagnostics.divisors import nearest_divisor
from vlmc.ir.sequence import no_room
from vlmc.ir.training import (
    LOOPED,
    OPTIMISERS,
    TRAINED_IN,
    ZERO_STAGES,
    why_not_zero,
    zero_stages,
)
from vlmc.runtime.parallel.parts import Parts
from vlmc.runtime.parallel.ruled import Broken, Degrees, Ruled
from vlmc.runtime.parallel.split_rules import broken_split
from vlmc.runtime.parallel.stage_rules import broken_placement, broken_ranges, broken_stages

MOST_POSITIONS = 2**20
"""Of a model that has no end of them: relative positions bound no sequence."""


def may_share_sequences(trains: bool, tensor: int) -> bool:
    """Whether sequence parallelism can be: wherever a tensor group trains. Sequences are padded
    until its ranks divide them, and each block of a language model that it runs is split."""
    return trains and tensor > 1


def puts_off(schedule: str, groups: int) -> bool:
    """Whether a schedule puts gradients of weights off. PyTorch 2.13 cannot where projections read
    one gathered sequence: it goes through what they share twice."""
    return groups > 1 and schedule == "zero_bubble"


def refusal(schedule: str, ranks: int, micro_batches: int, chunks: int = 1) -> str | None:
    """Why torch.distributed.pipelining cannot run such a schedule; None where it can."""
    if min(ranks, micro_batches, chunks) < 1:
        return "a pipeline needs at least one rank, one micro-batch and one chunk"
    if schedule in ("gpipe", "1f1b") and chunks > 1:
        return f"{schedule} holds one stage per rank, not {chunks}"
    if schedule == "1f1b" and micro_batches < ranks:
        return f"1f1b over {ranks} ranks needs as many micro-batches, not {micro_batches}"
    if schedule in LOOPED:
        rounds = max(1, micro_batches // ranks)
        if micro_batches % rounds:
            return (
                f"{schedule} over {ranks} ranks sends {micro_batches} micro-batches in {rounds} "
                f"rounds, and {rounds} does not divide {micro_batches}"
            )
    return None


def broken_rules(plan: Ruled) -> Iterator[Broken]:
    """What a plan contradicts itself in, and what train.py does not run."""
    yield from _broken_degrees(plan)
    if plan.sequence_parallel and not may_share_sequences(plan.trains, plan.mesh.tensor):
        yield _not_run(
            "sequence_parallel",
            "only the ranks of a tensor group share sequences out, and only in training",
            "false",
            "true",
            "false",
        )
    elif plan.sequence_parallel and puts_off(plan.schedule, plan.mesh.pipeline):
        yield _not_run(
            "sequence_parallel",
            "zero_bubble cannot put gradients off where projections share a gathered sequence",
            "false, or another schedule",
            "true",
            "false",
        )
    if plan.chunks > 1 and puts_off(plan.schedule, plan.mesh.pipeline):
        yield _not_run(
            "chunks",
            "what zero_bubble holds is known of one stage to a group alone",
            "1, or interleaved",
            str(plan.chunks),
            "1",
        )
    yield from _broken_batch(plan)
    yield from broken_stages(plan)
    yield from broken_ranges(plan)
    yield from broken_placement(plan)
    if plan.trains:
        yield from _broken_training(plan)


def broken_for(
    parts: Parts, mesh: Degrees, vision: int, trained: Sequence[str], text: int, images: int
) -> Iterator[Broken]:
    """What a plan contradicts of the design that it is to run, before a block is looked at.
    `vision`: ranks over which encoder and adapter are split."""
    for number, role in enumerate(trained):
        if role not in parts.parts or not parts.parts[role].parameters:
            learns = [name for name, part in parts.parts.items() if part.parameters]
            yield Broken(
                code="VLMC162",
                path=("trained", number),
                message=f"the design's {role} has no parameters to train",
                expected=", ".join(learns),
                got=role,
                help="name one of these, or leave it out",
            )
    yield from _broken_sequence(text, images, parts)
    yield from broken_split(mesh.tensor, vision, parts)


def _broken_sequence(text: int, images: int, parts: Parts) -> Iterator[Broken]:
    """Sequences that the model cannot read."""
    most = MOST_POSITIONS if parts.context is None else parts.context
    found = no_room(text, images, each=parts.taken, words=parts.image_words, context=most)
    if found is None:
        return
    fewer = "" if found.images == images else f"images: {found.images}, "
    yield Broken(
        code="VLMC130",
        path=("images",) if fewer else ("text",),
        related=(("text",) if fewer else ("images",),),
        message=found.message,
        expected=found.expected,
        got=found.got,
        help=f"{fewer}text: {found.text}",
    )


def _broken_degrees(plan: Ruled) -> Iterator[Broken]:
    mesh, count = plan.mesh, plan.count
    if mesh.ranks != count:
        rest = mesh.pipeline * mesh.tensor
        yield Broken(
            code="VLMC161",
            path=("mesh",),
            related=(("count",),),
            message=f"the mesh has {mesh.ranks} ranks for {count} devices",
            expected=f"pipeline x data x tensor = {count}",
            got=f"{mesh.pipeline} x {mesh.data} x {mesh.tensor} = {mesh.ranks}",
            help=f"data: {count // rest}" if count % rest == 0 else f"count: {mesh.ranks}",
        )
    if count > plan.per_node and count % plan.per_node:
        yield Broken(
            code="VLMC161",
            path=("per_node",),
            related=(("count",),),
            message=f"{count} devices do not fill nodes of {plan.per_node}",
            expected=f"a divisor of {count}",
            got=f"{count} / {plan.per_node} = {count // plan.per_node} remainder "
            f"{count % plan.per_node}",
            help=f"per_node: {nearest_divisor(count, plan.per_node)}",
        )
    meant = _encoder_degrees(plan)
    if plan.encoder in (None, meant):
        return
    given, ranks = plan.encoder, mesh.data * mesh.tensor
    yield Broken(
        code="VLMC161",
        path=("encoder",),
        related=(("mesh",), ("placement",)),
        message="encoder and adapter cannot have these degrees",
        expected="those of mesh; where they are replicated, 1 group, a tensor degree below "
        f"{mesh.tensor} that divides it, and data x tensor = {ranks}",
        got=f"{given.pipeline} x {given.data} x {given.tensor}",
        help=f"encoder: {{pipeline: {meant.pipeline}, data: {meant.data}, tensor: {meant.tensor}}}",
    )


def _encoder_degrees(plan: Ruled) -> Degrees:
    """What those of encoder and adapter can only be: with the tensor degree that the plan says,
    where that can be, those of whole copies."""
    mesh = plan.mesh
    if plan.placement != "replicated":
        return mesh
    tensor = plan.encoder_tensor
    if tensor >= mesh.tensor or mesh.tensor % tensor:
        tensor = 1
    return Degrees(1, mesh.data * mesh.tensor // tensor, tensor)


def _broken_batch(plan: Ruled) -> Iterator[Broken]:
    data = plan.mesh.data
    shared = data * plan.micro_batch
    if plan.batch % shared:
        near = nearest_divisor(plan.batch // data, plan.micro_batch) if plan.batch >= data else 1
        yield Broken(
            code="VLMC163",
            path=("micro_batch",),
            related=(("batch",),),
            message=f"micro-batches of {plan.micro_batch} do not divide the batch",
            expected=f"data x micro_batch that divides {plan.batch}",
            got=f"{plan.batch} / ({data} x {plan.micro_batch}) = {plan.batch // shared} "
            f"remainder {plan.batch % shared}",
            help=f"batch: {shared * -(-plan.batch // shared)}"
            if plan.batch % data
            else f"micro_batch: {near}",
        )
        return
    if not plan.trains:
        return
    why = refusal(plan.schedule, plan.mesh.pipeline, plan.micro_batches, plan.chunks)
    if why is not None:
        yield Broken(
            code="VLMC163",
            path=("schedule",),
            related=(("micro_batch",),),
            message="the schedule cannot run so many micro-batches",
            expected="a schedule that fits the pipeline's groups and micro-batches",
            got=why,
            help="schedule: gpipe" if plan.chunks == 1 else "chunks: 1",
        )


def _broken_training(plan: Ruled) -> Iterator[Broken]:
    """What train.py does not run."""
    for key, word, words in (
        ("optimiser", plan.optimiser, tuple(OPTIMISERS)),
        ("precision", plan.precision, TRAINED_IN),
    ):
        if word not in words:
            near = get_close_matches(word, words, 1) or words
            yield _not_run(
                key, f"`{key}` cannot be {word[:60]!r} in training", ", ".join(words), word[:60],
                near[0],
            )  # fmt: skip
    stages = zero_stages(plan.schedule, plan.mesh.pipeline)
    if plan.zero not in stages:
        known = plan.zero in ZERO_STAGES
        yield _not_run(
            "zero",
            why_not_zero(plan.zero, plan.schedule) if known else f"`zero` cannot be {plan.zero}",
            ", ".join(map(str, stages)) + (", or schedule gpipe or 1f1b" if known else ""),
            str(plan.zero),
            str(stages[-1]),
        )
    if not plan.trained:
        yield _not_run("trained", "no part is trained: nothing would be learnt",
                       "at least one role", "none", "[adapter]")  # fmt: skip
    once = dict.fromkeys(plan.trained)
    if len(once) < len(plan.trained):
        listed = ", ".join(once)
        yield _not_run("trained", "`trained` names a part twice", "each role once",
                       ", ".join(plan.trained), f"[{listed}]")  # fmt: skip
    yield from _broken_recomputation(plan)


def _broken_recomputation(plan: Ruled) -> Iterator[Broken]:
    """Checkpointing of what stands beside the stacks: that is never computed again."""
    for name, kept in plan.checkpointing.items():
        if "*" not in name and kept != "none":
            yield Broken(
                code="VLMC012",
                path=("checkpointing", name),
                message=f"`{name[:60]}` names no stack, whose blocks alone are computed again",
                expected="none, or a name with *",
                got=kept,
                help=f"{name[:60]}: none",
            )


def _not_run(key: str, message: str, expected: str, got: str, meant: str) -> Broken:
    return Broken(
        code="VLMC012",
        path=(key,),
        message=message,
        expected=expected,
        got=got,
        help=f"{key}: {meant}",
    )
