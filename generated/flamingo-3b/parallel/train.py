"""Trains flamingo-3b as a plan says: Python 3.11 or newer, torch, PyYAML.

    torchrun --nproc-per-node 4 parallel/train.py --plan plan.yaml --data train.jsonl --steps 100

It reads model.py and weights/ in the folder above. A line of the data holds input_ids (with an
image token for each image, or none: then images come first), labels where they are not the words
themselves, and pixel_values: the name of a safetensors file beside it that holds pixel_values
[images, ...] as the design's processor makes them. --save leaves a checkpoint that
--resume goes on from, under any plan of this design.
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    # Folders of a build such as onnx/ would pass for the packages of that name.
    del sys.path[0]


import argparse
import importlib.util
import inspect
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from itertools import cycle, islice
from math import gcd, inf
from types import MethodType, SimpleNamespace
from typing import Any

try:
    import torch
    import torch.autograd
    import torch.distributed
    import torch.distributed.checkpoint
    import torch.distributed.pipelining.stage
    import torch.distributed.tensor
    import torch.nn.functional as F
    import torch.utils.checkpoint
    import yaml
    from torch import Tensor, nn
    from torch.autograd.graph import GradientEdge
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )
    from torch.distributed.pipelining import (
        PipelineStage,
        Schedule1F1B,
        ScheduleGPipe,
        ScheduleInterleaved1F1B,
        ScheduleInterleavedZeroBubble,
    )
    from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        RowwiseParallel,
        parallelize_module,
    )
except ModuleNotFoundError as error:
    package = {"PIL": "Pillow", "yaml": "PyYAML"}.get(error.name or "", error.name)
    sentence = f"the package {package} is missing: pip install {package}"
    if "--json" in sys.argv:
        import json

        print(json.dumps({"version": 1, "error": sentence, "exit": 3}))
    else:
        print(f"error: {sentence}", file=sys.stderr)
    sys.exit(3)

# --------------------------------------------------------------------------------------------------
# What a user is told without a traceback; needs nothing else of vlmc.
# --------------------------------------------------------------------------------------------------


class UsageError(Exception):
    """A command that cannot mean anything, such as a file that is not there. Exit code 2."""


class EnvironmentFault(Exception):
    """The design is sound but this machine cannot do what was asked. Exit code 3."""


# --------------------------------------------------------------------------------------------------
# Divisors that a help proposes.
# --------------------------------------------------------------------------------------------------


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is closest to `wanted` (the smaller of two equally close)."""
    divisors = [one for one in range(1, min(number, 4096) + 1) if number % one == 0]
    return min(divisors, key=lambda one: (abs(one - wanted), one))


# --------------------------------------------------------------------------------------------------
# What a sequence can hold of text and images; needs nothing else of vlmc.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Why so much text and so many images are no sequence, and the nearest that are one."""

    message: str
    expected: str
    got: str
    text: int
    images: int


def no_room(text: int, images: int, *, each: int, words: int, context: int | None) -> NoRoom | None:
    """Why a model with `context` positions cannot read `text` tokens of text with `images` images;
    None where it can. An image takes `each` positions beside the text, and `words` tokens of it."""
    least, visual = images * words + 1, images * each
    bound = max(text, least) + visual if context is None else context
    if least <= text <= bound - visual:
        return None
    some, nearest = images, min(max(text, least), bound - visual)
    if nearest < least:  # so many images leave no word
        some = (bound - 1) // (each + words)
        nearest = bound - some * each
    if text < least:
        return NoRoom(
            message=f"{images} images leave no word in {text} tokens of text",
            expected=f"at least {least}: a token for each image, and a word",
            got=f"{text}",
            text=nearest,
            images=some,
        )
    return NoRoom(
        message=f"text and images are {text + visual - bound} over the language model's context",
        expected=f"at most {bound} positions",
        got=f"{text} text + {images} images x {each} tokens = {text + visual}",
        text=nearest,
        images=some,
    )


# --------------------------------------------------------------------------------------------------
# What a step of training is run with; needs nothing else of vlmc.
# --------------------------------------------------------------------------------------------------


OPTIMISERS: dict[str, int] = {"adamw": 8, "sgd": 0}
"""Bytes of state for each trained parameter, in fp32."""
TRAINED_IN = ("bf16", "fp32")
"""fp16 overflows in training unless losses are scaled, which train.py does not do."""
ZERO_STAGES = (0, 1, 2, 3)
"""What replicas share out (Rajbhandari et al., 2020): 1 the optimiser's state and the weights in
fp32 that it updates, 2 gradients, too, 3 the weights that are computed with, too."""
LOOPED = ("interleaved", "zero_bubble")
"""Schedules that PyTorch runs by a list of actions: it gathers the weights of whole stages before
it computes on them, and gradients of weights that are put off need them to stay."""


def whole_weights(schedule: str, groups: int) -> bool:
    """Whether a schedule keeps the weights of whole stages gathered, whatever is sharded."""
    return groups > 1 and schedule in LOOPED


def zero_stages(schedule: str, groups: int) -> tuple[int, ...]:
    """Those that a schedule can run with. Where weights stay gathered, 3 would share out nothing
    more; gradients that are put off are whole until the end of a step."""
    if not whole_weights(schedule, groups):
        return ZERO_STAGES
    return ZERO_STAGES[:2] if schedule == "zero_bubble" else ZERO_STAGES[:3]


def why_not_zero(zero: int, schedule: str) -> str:
    """Why a schedule cannot run with a stage that is none of `zero_stages`."""
    needs = "the weights" if zero == ZERO_STAGES[-1] else "the gradients"
    return f"`zero` cannot be {zero} with {schedule}, which needs {needs} of whole stages"


# --------------------------------------------------------------------------------------------------
# Functions of PyTorch whose annotations leave types open, named once.
# --------------------------------------------------------------------------------------------------


DISTRIBUTED: Any = torch.distributed
STORAGE: Any = torch.distributed.checkpoint
PIPELINING: Any = torch.distributed.pipelining.stage
RECOMPUTATION: Any = torch.utils.checkpoint


# --------------------------------------------------------------------------------------------------
# What a training run must know of a design beside its model.py.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: its kind, the arguments that it was made with, and how many parameters it has."""

    kind: str
    arguments: dict[str, Any]
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a design by role."""

    name: str
    spec: str
    """The fingerprint of the spec that it was built from, as a plan for it bears."""
    parts: dict[str, Part]
    image: tuple[int, ...]
    """Shape of one image (or of its region features); of a video of the most frames, where the
    encoder sees videos."""
    places: int
    """Positions of the text that one image takes: as many tokens stand for it."""
    context: int | None
    """Positions that the language model has."""

    def argument(self, role: str, name: str) -> Any:
        """An argument of a part; None where it takes none of this name."""
        return self.parts[role].arguments.get(name)

    @property
    def still(self) -> tuple[int, ...]:
        """Shape of an image that is no video, as plans count them."""
        return self.image[-3:]

    @property
    def fusion(self) -> str:
        """How vision reaches the language model, by what the model does with it."""
        kind = self.parts["fusion"].kind
        return {"query_prefix": "prefix"}.get(kind, kind)

    @property
    def vocabulary(self) -> int:
        """Words that the language model knows, added ones among them."""
        added = self.argument("language", "added_vocabulary") or 0
        return int(self.argument("language", "vocabulary")) + int(added)

    @property
    def taken(self) -> int:
        """Positions that one image takes beside the text."""
        return self.places if self.fusion in ("prefix", "placeholder") else 0

    @property
    def image_words(self) -> int:
        """Tokens of the text that stand for one image."""
        return 1 if self.fusion == "gated_cross_attention" else 0

    @property
    def target(self) -> bool:
        """Whether the words to learn are read by a decoder of their own."""
        return self.parts["language"].kind == "encoder_decoder"


def role_of(parameter: str) -> str:
    """The part that a parameter belongs to, by its name in model.py."""
    first = parameter.split(".", maxsplit=1)[0]
    return first if first in ("encoder", "adapter", "language", "head") else "fusion"


# --------------------------------------------------------------------------------------------------
# What rules read of a plan, and what they say of it.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Degrees:
    """Ranks = pipeline x data x tensor; tensor neighbours are adjacent."""

    pipeline: int
    data: int
    tensor: int

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.pipeline * self.data * self.tensor


def encoder_degree(placement: str, encoder: int | None, tensor: int) -> int:
    """Ranks over which encoder and adapter are split: a tensor group, unless they are replicated
    within it; then as many as the plan says, or one."""
    return (encoder or 1) if placement == "replicated" else tensor


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks of one stack that a stage holds, `last` included."""

    block: str
    first: int
    last: int

    def related(self, path: str) -> bool:
        """Whether a path is one of its modules, lies within one or around one. Numbers are
        compared, not listed: a range read from a file may be of any length."""
        for own, part in zip(self.block.split("."), path.split("."), strict=False):
            numbered = own == "*" and part.isdecimal() and self.first <= int(part) <= self.last
            if own != part and not numbered:
                return False
        return True

    @property
    def final(self) -> str:
        """Path of the last of its modules."""
        return self.block.replace("*", str(self.last))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruled:
    """Those fields of a plan that rules bind together, each of its own kind already."""

    trains: bool
    count: int
    per_node: int
    trained: tuple[str, ...]
    precision: str
    optimiser: str
    mesh: Degrees
    encoder: Degrees | None
    placement: str
    sequence_parallel: bool
    zero: int
    batch: int
    micro_batch: int
    schedule: str
    chunks: int
    checkpointing: Mapping[str, str]
    stages: tuple[tuple[int, tuple[Held, ...]], ...]
    """Group, and what is held."""

    @property
    def encoder_tensor(self) -> int:
        """Ranks over which encoder and adapter are split."""
        own = None if self.encoder is None else self.encoder.tensor
        return encoder_degree(self.placement, own, self.mesh.tensor)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step in each replica."""
        return self.batch // (self.mesh.data * self.micro_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A rule that a plan does not hold to."""

    code: str
    """Of the diagnostic."""
    path: tuple[str | int, ...]
    message: str
    expected: str
    got: str
    help: str
    related: tuple[tuple[str | int, ...], ...] = ()


# --------------------------------------------------------------------------------------------------
# What tensor degrees must hold to: what they split comes out even, or comes out at all.
# --------------------------------------------------------------------------------------------------


def shares_words(words: int, tensor: int) -> bool:
    """Whether each rank of a tensor group has some words of a head's, which need not come out even:
    the first ones have as many each, the last what is left. FSDP2 shards no empty tensor."""
    return (tensor - 1) * -(-words // tensor) < words


def broken_split(tensor: int, vision: int, parts: Parts) -> Iterator[Broken]:
    """A tensor degree that does not divide what it splits; the first that there is."""
    for role, part in parts.parts.items():
        degree = vision if role in ("encoder", "adapter") else tensor
        for what, count in _split_counts(role, part, parts):
            if not (shares_words(count, degree) if role == "head" else count % degree == 0):
                own = degree != tensor
                near = nearest_divisor(gcd(count, tensor) if own else count, degree)
                yield Broken(
                    code="VLMC161",
                    path=("encoder" if own else "mesh", "tensor"),
                    message=f"{degree} devices cannot share the {count} {what} of the {role}",
                    expected=f"a degree that divides {count}",
                    got=f"{count} / {degree} = {count // degree} remainder {count % degree}",
                    help=f"tensor: {near}",
                )
                return


def _split_counts(role: str, part: Part, parts: Parts) -> list[tuple[str, int]]:
    """What tensor parallelism divides in a part, with its name. A tied head reads the embedding,
    which stays whole."""
    known = part.arguments
    if role == "head":
        words = None if part.arguments.get("tied") else parts.argument("language", "vocabulary")
        return [("words of the vocabulary", words)] if words and part.kind != "classify" else []
    named = (("heads", "heads"), ("kv_heads", "key/value heads"), ("hidden", "hidden units"))
    return [(what, known[name]) for name, what in named if isinstance(known.get(name), int)]


# --------------------------------------------------------------------------------------------------
# What the stages of a plan must hold to: their number, their groups, their blocks.
# --------------------------------------------------------------------------------------------------


_SEEING = {"encoder", "adapter"}
_WORDS_OF = {"language", "head"}
_PLACED = {
    "stage_0": "encoder and adapter on stage 0",
    "replicated": "encoder and adapter on stage 0, several copies of them in a tensor group",
    "own_group": "stages of encoder and adapter that hold no language",
}


def broken_stages(plan: Ruled) -> Iterator[Broken]:
    groups, found = plan.mesh.pipeline, len(plan.stages)
    wanted = groups * plan.chunks
    if groups == 1 and plan.chunks > 1:
        yield Broken(
            code="VLMC161",
            path=("chunks",),
            related=(("mesh", "pipeline"),),
            message="one pipeline group holds the whole model as one stage",
            expected="1, or more groups",
            got=str(plan.chunks),
            help="chunks: 1",
        )
        return
    if found != wanted:
        yield Broken(
            code="VLMC161",
            path=("stages",),
            message=f"{wanted} stages are needed",
            expected=f"pipeline x chunks = {groups} x {plan.chunks} = {wanted}",
            got=f"{found}",
            help="chunks: 1" if found == groups else f"pipeline: {found}",
        )
        return
    for index, (group, held) in enumerate(plan.stages):
        if group != index % groups:
            yield Broken(
                code="VLMC161",
                path=("stages", index, "group"),
                message=f"stage {index} belongs to another group",
                expected=f"{index} mod {groups} = {index % groups}",
                got=str(group),
                help=f"group: {index % groups}",
            )
        if not held:
            yield Broken(
                code="VLMC162",
                path=("stages", index, "holds"),
                message=f"stage {index} holds nothing",
                expected="at least one block",
                got="none",
                help="move blocks of a neighbour to it",
            )


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a range of blocks of one name is held."""

    path: tuple[str | int, ...]
    first: int
    last: int


def places_of(stages: Sequence[tuple[int, Sequence[Held]]]) -> dict[str, list[Placed]]:
    """By block, where it is held, by number."""
    found: dict[str, list[Placed]] = {}
    for index, (_, holds) in enumerate(stages):
        for number, held in enumerate(holds):
            path = ("stages", index, "holds", number)
            found.setdefault(held.block, []).append(Placed(path, held.first, held.last))
    return {name: sorted(places, key=lambda p: (p.first, p.last)) for name, places in found.items()}


def broken_ranges(plan: Ruled) -> Iterator[Broken]:
    """Ranges that end before they begin, overlap, or leave a gap between them; numbers of what
    stands alone."""
    for name, places in places_of(plan.stages).items():
        following = 0
        for place in places:
            if "*" not in name and place.last > max(place.first, 0):
                yield broken_range(place, name, f"from {place.first} to {place.last}",
                                   "one block, as the name has no *", "last: 0")  # fmt: skip
                following = place.last + 1
                continue
            if place.last < place.first:
                yield broken_range(place, name, f"from {place.first} to {place.last}",
                                   "a last block that is no earlier than the first",
                                   f"last: {place.first}")  # fmt: skip
                continue
            if place.first < following:
                again = blocks_named(place.first, min(place.last, following - 1))
                yield broken_range(place, name, f"{again} again",
                                   f"each block once, next {following}",
                                   f"first: {following}")  # fmt: skip
            elif place.first > following:
                lost = blocks_named(following, place.first - 1)
                yield broken_range(place, name, f"nothing holds {lost}", f"first: {following}",
                                   f"first: {following}")  # fmt: skip
            following = max(following, place.last + 1)


def broken_range(place: Placed, name: str, got: str, expected: str, help_: str) -> Broken:
    """A range of blocks that is not what it should be; `help_` begins with the key at fault."""
    return Broken(
        code="VLMC162",
        path=(*place.path, help_.partition(":")[0]),
        message=f"`{name[:60]}` is not held as it should be",
        expected=expected,
        got=got,
        help=help_,
    )


def blocks_named(first: int, last: int) -> str:
    """A range of blocks in words."""
    return f"block {first}" if first == last else f"blocks {first} to {last}"


def broken_placement(plan: Ruled) -> Iterator[Broken]:
    """Where encoder and adapter are said to lie and do not; `spread` is always so."""
    roles = [{held.block.split(".")[0] for held in holds} for _, holds in plan.stages]
    seeing = [index for index, of in enumerate(roles) if of & _SEEING]
    mixed = [index for index in seeing if roles[index] & _WORDS_OF]
    later = [index for index in seeing if index]
    got = None
    if plan.placement == "replicated" and plan.mesh.tensor == 1:
        got = "a tensor degree of 1, which shares nothing out"
    elif plan.placement in ("stage_0", "replicated") and later:
        got = f"some of them on stage {later[0]}"
    elif plan.placement == "own_group" and mixed:
        got = f"language, too, on stage {mixed[0]}"
    if got is not None:
        yield Broken(
            code="VLMC162",
            path=("placement",),
            related=(("stages",),),
            message=f"encoder and adapter are not placed as `{plan.placement}` says",
            expected=_PLACED[plan.placement],
            got=got,
            help="placement: spread",
        )


# --------------------------------------------------------------------------------------------------
# What a plan must hold to so that it can run: rules that `vlmc plan` and train.py share.
# --------------------------------------------------------------------------------------------------


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


# --------------------------------------------------------------------------------------------------
# plan.yaml as a training run reads it: every field checked, nothing coerced.
# --------------------------------------------------------------------------------------------------


_ROLES = ("encoder", "select", "adapter", "fusion", "language", "head")
_WORDS: dict[str, tuple[str, ...]] = {
    "mode": ("train", "serve"),
    "precision": ("fp32", "bf16", "fp16"),
    "placement": ("stage_0", "own_group", "replicated", "spread"),
    "schedule": ("gpipe", "1f1b", "interleaved", "zero_bubble"),
}
_CHECKPOINTING = ("none", "selective", "full")
_COUNTS = ("version", "per_node", "batch", "micro_batch", "text", "chunks")
_RULED = (
    "per_node", "precision", "optimiser", "placement", "sequence_parallel", "zero", "batch",
    "micro_batch", "schedule", "chunks", "checkpointing",
)  # fmt: skip
_KEYS = {
    "version", "design", "spec", "mode", "hardware", "count", "per_node", "trained", "precision",
    "optimiser", "learning_rate", "epochs", "mesh", "encoder", "placement", "sequence_parallel",
    "zero", "batch", "micro_batch", "text", "images", "schedule", "chunks", "checkpointing",
    "stages", "predicted", "bound_seconds",
}  # fmt: skip
_NEEDED = ("version", "design", "spec", "mode", "mesh", "batch", "micro_batch", "stages")
_DEFAULTS: dict[str, Any] = {
    "trained": (), "precision": "bf16", "optimiser": "adamw", "placement": "spread",
    "sequence_parallel": False, "zero": 0, "schedule": "1f1b", "chunks": 1, "checkpointing": {},
    "count": None, "per_node": 1, "text": 1, "images": 0, "encoder": None,
    "learning_rate": None, "epochs": None, "hardware": "", "predicted": None, "bound_seconds": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a training run does."""

    design: str
    spec: str
    trained: tuple[str, ...]
    precision: str
    optimiser: str
    learning_rate: float | None
    """Of the stage of training that the plan is for; None where the design names no stages."""
    epochs: int | None
    """Passes over the data, likewise."""
    mesh: Degrees
    encoder_tensor: int
    """Over how many devices encoder and adapter are split."""
    placement: str
    sequence_parallel: bool
    zero: int
    batch: int
    micro_batch: int
    text: int
    images: int
    schedule: str
    chunks: int
    checkpointing: dict[str, str]
    stages: tuple[tuple[Held, ...], ...]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step in each replica."""
        return self.batch // (self.mesh.data * self.micro_batch)

    @property
    def shares(self) -> int:
        """In how many shares a language model's tokens lie between its split layers."""
        return self.mesh.tensor if self.sequence_parallel else 1


class _Once(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        if len(found) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), "a key")
            raise ValueError(f"{twice} is given twice (line {node.start_mark.line + 1} on)")
        return found


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises UsageError, naming the field, where it is none that can run."""
    try:
        document: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_Once)
        return _plan(document)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; `vlmc plan` writes it") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is not YAML: {reason[:200]}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def check_plan(plan: Plan, parts: Parts, ranks: int) -> None:
    """Raises UsageError unless the plan is for this build, and for so many processes."""
    if plan.spec != parts.spec:
        raise UsageError(
            f"the plan was made for another spec, {plan.design} ({plan.spec[:12]}); this build is "
            f"of {parts.name} ({parts.spec[:12]}): run `vlmc plan` on the spec of the build"
        )
    if plan.mesh.ranks != ranks:
        raise UsageError(
            f"the plan is for {plan.mesh.ranks} processes, but there are {ranks}: "
            f"torchrun --nproc-per-node {plan.mesh.ranks}"
        )
    vision = plan.encoder_tensor
    for one in broken_for(parts, plan.mesh, vision, plan.trained, plan.text, plan.images):
        raise UsageError(_said(one))


def _plan(document: Any) -> Plan:
    _require(is_a(document, dict), "the file does not hold a plan")
    for key in document:
        _require(key in _KEYS, f"{key} is no field of a plan")
    for key in _NEEDED:
        _require(key in document, f"{key} is missing")
    whole = {**_DEFAULTS, **document}
    for key in _COUNTS:
        _require(_whole(whole[key], 1), f"{key} must be a whole number from 1 on")
    _require(whole["version"] == 1, "this run reads plans of version 1")
    for key in ("count", "epochs"):
        given = whole[key]
        _require(given is None or _whole(given, 1), f"{key} must be a whole number from 1 on")
    rate = whole["learning_rate"]
    _require(
        rate is None or (is_a(rate, int | float) and not is_a(rate, bool) and 0 < rate < inf),
        "learning_rate must be a number above 0",
    )
    for key, words in _WORDS.items():
        _require(whole[key] in words, f"{key} must be one of {', '.join(words)}")
    _require(whole["mode"] == "train", "mode: a plan to serve is not trained with")
    for key in ("images", "zero"):
        _require(_whole(whole[key], 0), f"{key} must be a whole number")
    _require(isinstance(whole["sequence_parallel"], bool), "sequence_parallel is true or false")
    for key in ("design", "spec", "optimiser", "hardware"):
        _require(isinstance(whole[key], str), f"{key} must be text")
    predicted, bound = whole["predicted"], whole["bound_seconds"]
    _require(predicted is None or is_a(predicted, dict), "predicted must be what `vlmc plan` wrote")
    _require(
        bound is None or (is_a(bound, int | float) and not is_a(bound, bool) and 0 <= bound < inf),
        "bound_seconds must be a number from 0 on",
    )
    trained = whole["trained"]
    _require(
        is_a(trained, list | tuple) and all(role in _ROLES for role in trained),
        f"trained must list roles out of {', '.join(_ROLES)}",
    )
    mesh = _degrees("mesh", whole["mesh"])
    encoder = None if whole["encoder"] is None else _degrees("encoder", whole["encoder"])
    checkpointing = whole["checkpointing"]
    _require(
        is_a(checkpointing, dict)
        and all(isinstance(k, str) and v in _CHECKPOINTING for k, v in checkpointing.items()),
        f"checkpointing must give blocks one of {', '.join(_CHECKPOINTING)}",
    )
    stages = _stages(whole["stages"])
    ruled = Ruled(
        trains=True,
        count=whole["count"] or mesh.ranks,
        mesh=mesh,
        encoder=encoder,
        trained=tuple(trained),
        stages=stages,
        **{key: whole[key] for key in _RULED},
    )
    broken = next(broken_rules(ruled), None)
    _require(broken is None, "" if broken is None else _said(broken))
    return Plan(
        design=whole["design"],
        spec=whole["spec"],
        trained=tuple(trained),
        precision=whole["precision"],
        optimiser=whole["optimiser"],
        learning_rate=rate,
        epochs=whole["epochs"],
        mesh=mesh,
        encoder_tensor=ruled.encoder_tensor,
        placement=whole["placement"],
        sequence_parallel=whole["sequence_parallel"],
        zero=whole["zero"],
        batch=whole["batch"],
        micro_batch=whole["micro_batch"],
        text=whole["text"],
        images=whole["images"],
        schedule=whole["schedule"],
        chunks=whole["chunks"],
        checkpointing=dict(checkpointing),
        stages=tuple(held for _, held in stages),
    )


def _said(broken: Broken) -> str:
    where = ".".join(map(str, broken.path))
    return (
        f"{where}: {broken.message}; expected {broken.expected}, got {broken.got}; for example "
        f"{broken.help}"
    )


def _stages(given: Any) -> tuple[tuple[int, tuple[Held, ...]], ...]:
    _require(is_a(given, list) and bool(given), "stages must list what each stage holds")
    found: list[tuple[int, tuple[Held, ...]]] = []
    for place, stage in enumerate(given):
        where = f"stages[{place}]"
        _require(
            is_a(stage, dict) and set(stage) == {"group", "holds"},
            f"{where} must have group and holds",
        )
        _require(_whole(stage["group"], 0), f"{where}.group must be a whole number")
        _require(is_a(stage["holds"], list), f"{where}.holds must be a list")
        held: list[Held] = []
        for one in stage["holds"]:
            _require(
                is_a(one, dict)
                and set(one) == {"block", "first", "last"}
                and isinstance(one["block"], str)
                and _whole(one["first"], 0)
                and _whole(one["last"], 0),
                f"{where}.holds: each has block, first and last",
            )
            held.append(Held(one["block"], one["first"], one["last"]))
        found.append((stage["group"], tuple(held)))
    return tuple(found)


def _degrees(name: str, given: Any) -> Degrees:
    keys = ("pipeline", "data", "tensor")
    _require(is_a(given, dict) and set(given) == set(keys), f"{name} must have {', '.join(keys)}")
    for key in keys:
        _require(_whole(given[key], 1), f"{name}.{key} must be a whole number from 1 on")
    return Degrees(*(given[key] for key in keys))


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value read from a file is of a kind; what it holds stays open."""
    return isinstance(value, kind)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


# --------------------------------------------------------------------------------------------------
# A model as a chain of steps, so that it can be cut anywhere.
# --------------------------------------------------------------------------------------------------


State = dict[str, Tensor]
"""What one step leaves to the next: image (within the encoder), features, latents (within the
adapter), visual, x, encoded, loss; hidden states [rows, tokens, width]."""
Data = dict[str, Any]
"""What every stage knows of a micro-batch: see `vlmc.runtime.parallel.batches`."""
Run = Callable[[Any, State, Data], State]
"""Runs a step of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part of the model that is never cut."""

    name: str
    """Path of the block, or what stands before or after a stack: as in a plan."""
    owns: tuple[str, ...]
    """Paths of the parameters that it reads, or of modules that hold them."""
    run: Run
    block: str | None = None
    """Path of the module that is a unit of its own: for sharding and for checkpointing."""
    look: Callable[..., Tensor] | None = None
    """A method that the block is given, called in place of its forward: keys and values of what it
    looks at are made within it."""


def whole(name: str, run: Run, *owns: str) -> Step:
    """A step that no unit of its own belongs to, reading `owns`."""
    return Step(name=name, owns=owns, run=run)


def unit(path: str, run: Run, look: Callable[..., Tensor] | None = None, *more: str) -> Step:
    """A step that is one block."""
    return Step(name=path, owns=(path, *more), run=run, block=path, look=look)


def passed(state: State, *gone: str, **new: Tensor) -> State:
    """The state without `gone`, with `new`."""
    return {**{name: value for name, value in state.items() if name not in gone}, **new}


def numbered(count: int, step: Callable[[int], Step]) -> list[Step]:
    """The steps of a stack."""
    return [step(index) for index in range(count)]


def at(run: Callable[[int, Any, State, Data], State], index: int) -> Run:
    """A step's function for one block of a stack."""
    return partial(run, index)


# --------------------------------------------------------------------------------------------------
# Encoders and adapters as steps.
# --------------------------------------------------------------------------------------------------


def vision_steps(parts: Parts) -> list[Step]:
    """From pixels (or region features) to visual tokens [images, tokens, width] in `visual`."""
    made = {"vit": _vit, "nfnet": _nfnet}.get(parts.parts["encoder"].kind, _given)
    adapter = {"perceiver_resampler": _resampler, "qformer": _qformer}
    return [*made(parts), *adapter.get(parts.parts["adapter"].kind, _adapter)(parts)]


def _stills(parts: Parts, images: Tensor) -> Tensor:
    """Images [n, 3, h, w] of what may be videos [n, frames, 3, h, w]."""
    if parts.argument("encoder", "frames") == 1:
        return images
    return (images[:, None] if images.ndim == 4 else images).flatten(0, 1)


def _joined(x: Tensor, images: Tensor) -> Tensor:
    """Features of whole videos, from those of their frames."""
    return x.reshape(images.shape[0], -1, x.shape[-1])


def _vit(parts: Parts) -> list[Step]:
    values = parts.parts["encoder"].arguments
    chosen: tuple[int, ...] = tuple(values["feature_layers"])
    several = len(chosen) > 1

    def kept(index: int, x: Tensor) -> State:
        return {f"kept.{index}": x} if several and index in chosen else {}

    def start(model: Any, state: State, data: Data) -> State:
        encoder = model.encoder
        images = _stills(parts, data["images"])
        x = encoder.patch_embedding(images.to(encoder.patch_embedding.weight.dtype))
        x = x.flatten(2).transpose(1, 2)
        if values["class_token"]:
            x = torch.cat((encoder.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + encoder.position_embedding
        if values["pre_norm"]:
            x = encoder.pre_norm(x)
        return passed(state, image=x, **kept(0, x))

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        x = model.encoder.layers[index](state["image"])
        return passed(state, image=x, **kept(index + 1, x))

    def end(model: Any, state: State, data: Data) -> State:
        normed = values["norm_features"] and values["post_norm"]
        found = [state[f"kept.{index}"] for index in chosen] if several else [state["image"]]
        found = [model.encoder.post_norm(x) for x in found] if normed else found
        x = torch.cat(found, dim=-1) if several else found[0]
        x = x[:, 1:] if values["drop_class_token"] else x
        names = [f"kept.{index}" for index in chosen]
        return passed(state, "image", *names, features=_joined(x, data["images"]))

    first = ("patch_embedding", "class_embedding", "position_embedding", "pre_norm")
    return [
        whole("encoder.begin", start, *(f"encoder.{name}" for name in first)),
        *numbered(max(chosen), lambda n: unit(f"encoder.layers.{n}", at(layer, n))),
        whole("encoder.end", end, "encoder.post_norm"),
    ]


def _nfnet(parts: Parts) -> list[Step]:
    def start(model: Any, state: State, data: Data) -> State:
        encoder = model.encoder
        images = _stills(parts, data["images"])
        x = encoder.stem[0](images.to(encoder.stem[0].weight.dtype))
        for layer in encoder.stem[1:]:
            x = layer(encoder.activation(x) * parts.argument("encoder", "gamma"))
        return passed(state, image=x)

    def block(index: int, model: Any, state: State, data: Data) -> State:
        return passed(state, image=model.encoder.blocks[index](state["image"]))

    def end(model: Any, state: State, data: Data) -> State:
        encoder = model.encoder
        x = encoder.activation(encoder.final(state["image"])) * parts.argument("encoder", "gamma")
        x = x.flatten(2).transpose(1, 2)
        return passed(state, "image", features=_joined(x, data["images"]))

    return [
        whole("encoder.begin", start, "encoder.stem"),
        *numbered(
            sum(parts.argument("encoder", "depths")),
            lambda n: unit(f"encoder.blocks.{n}", at(block, n)),
        ),
        whole("encoder.end", end, "encoder.final"),
    ]


def _given(parts: Parts) -> list[Step]:
    def start(model: Any, state: State, data: Data) -> State:
        return passed(state, features=data["images"])

    return [whole("encoder", start)]


def _adapter(parts: Parts) -> list[Step]:
    def run(model: Any, state: State, data: Data) -> State:
        return passed(state, "features", visual=model.adapter(state["features"]))

    return [whole("adapter", run, "adapter")]


def _resampler(parts: Parts) -> list[Step]:
    values = parts.parts["adapter"].arguments

    def start(model: Any, state: State, data: Data) -> State:
        adapter, features = model.adapter, state["features"]
        if values["source_width"] != values["width"]:
            features = adapter.projection(features)
        if values["frames"] > 1:
            shown = features.shape[1] // values["source_tokens"]
            times = adapter.times(adapter.time_embedding, shown)
            features = features + times.repeat_interleave(values["source_tokens"], dim=0)
        latents = adapter.latents.expand(features.shape[0], -1, -1)
        return passed(state, features=features, latents=latents)

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        latents = model.adapter.layers[index](state["latents"], state["features"])
        gone = ("features",) if index + 1 == values["layers"] else ()
        return passed(state, *gone, latents=latents)

    def end(model: Any, state: State, data: Data) -> State:
        latents = state["latents"]
        visual = model.adapter.norm(latents) if values["final_norm"] else latents
        return passed(state, "latents", visual=visual)

    first = ("latents", "projection", "time_embedding")
    return [
        whole("adapter.begin", start, *(f"adapter.{name}" for name in first)),
        *numbered(values["layers"], lambda n: unit(f"adapter.layers.{n}", at(layer, n))),
        whole("adapter.end", end, "adapter.norm"),
    ]


def _queried(self: Any, x: Tensor, features: Tensor) -> Tensor:
    return self.forward(x, memory=self.cross.key_value(features))


def _qformer(parts: Parts) -> list[Step]:
    values = parts.parts["adapter"].arguments

    def crosses(index: int) -> bool:
        return index % values["cross_attention_every"] == 0

    last = max(filter(crosses, range(values["layers"])))

    def start(model: Any, state: State, data: Data) -> State:
        adapter = model.adapter
        features = state["features"].to(adapter.queries.dtype)
        x = adapter.norm(adapter.queries).expand(features.shape[0], -1, -1)
        return passed(state, features=features, latents=x)

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        block, x = model.adapter.layers[index], state["latents"]
        x = block.look(x, state["features"]) if crosses(index) else block(x, memory=None)
        gone = ("features",) if index == last else ()
        return passed(state, *gone, latents=x)

    def end(model: Any, state: State, data: Data) -> State:
        visual = model.adapter.projection(state["latents"])
        return passed(state, "latents", visual=visual)

    return [
        whole("adapter.begin", start, "adapter.queries", "adapter.norm"),
        *numbered(
            values["layers"],
            lambda n: unit(f"adapter.layers.{n}", at(layer, n), _queried if crosses(n) else None),
        ),
        whole("adapter.end", end, "adapter.projection"),
    ]


# --------------------------------------------------------------------------------------------------
# Fusion, language model and head as steps.
# --------------------------------------------------------------------------------------------------


def word_steps(parts: Parts) -> list[Step]:
    """From visual tokens to the loss."""
    if parts.fusion == "single_stream":
        return _single_stream(parts)
    if parts.target:
        return _encoder_decoder(parts)
    return _decoder(parts)


def context_of(parts: Parts, model: Any, data: Data, dtype: torch.dtype) -> SimpleNamespace:
    """What all layers of a decoder share: who sees whom, and the rotation. Padding stands last, so
    no token sees any and all rows have the same positions: layers save no mask for the backward
    pass, nor distances between tokens for each row."""
    words: Tensor = data["input_ids"]
    positions = torch.arange(words.shape[1], device=words.device)[None]
    where = SimpleNamespace(positions=positions, keys=positions, mask=None, causal=True)
    rotary = None
    if parts.argument("language", "positions") == "rotary":
        rotary = model.language.rotary(positions, dtype)
    return SimpleNamespace(places=where, rotary=rotary)


def bias_of(model: Any, data: Data, side: str) -> Tensor:
    """What all layers of an encoder, or of a decoder, add to their scores: how far words stand
    apart, and who sees whom. One tensor, since each layer saves it for the backward pass."""
    language, mask = model.language, data["attention_mask"]
    words = mask if side == "encoder" else data["labels"]
    place = torch.arange(words.shape[1], device=mask.device)[None]
    if side == "encoder":
        bias, hidden = language.encoder_bias(place, place), ~mask[:, None, None, :].bool()
    else:
        bias = language.decoder_bias(place, place)
        hidden = place[:, None, None, :] > place[:, None, :, None]
    return bias.masked_fill(hidden, float("-inf"))


def _filled(words: Tensor, visual: Tensor, data: Data) -> Tensor:
    """Words with visual tokens in their places. Images beyond the places are there for the shape
    alone; without any place the visual tokens get a gradient of zeros."""
    return words.masked_scatter(data["places"][..., None], visual.to(words.dtype))


def _gated(self: Any, x: Tensor, visual: Tensor, seen: Tensor, own: Tensor) -> Tensor:
    """`own`: what is seen by the tokens that `x` has, where ranks share them out; attention, which
    gathers all of them, is given what all see."""
    if own is not seen:
        self.attention.seen = seen
    return self.forward(x, self.attention.key_value(visual), own)


def _decoder(parts: Parts) -> list[Step]:
    crossing = parts.fusion == "gated_cross_attention"

    def project(model: Any, state: State, data: Data) -> State:
        visual = state["visual"]
        if parts.argument("fusion", "visual_projection"):
            visual = model.visual_projection(visual)
        rows = data["input_ids"].shape[0]
        return passed(state, visual=visual.reshape(rows, -1, visual.shape[-1]))

    def embed(model: Any, state: State, data: Data) -> State:
        x = model.language.embed(data["input_ids"])
        if not crossing:
            x = _filled(x, state["visual"], data)
            state = passed(state, "visual")
        if parts.argument("language", "positions") == "learned":
            where = data["context"](x.dtype).places.positions
            offset = parts.argument("language", "position_offset")
            x = x + model.language.position_embedding(where + offset)
        return passed(state, x=data["sequences"].share(x))

    layers: int = parts.argument("language", "layers")
    every: int = parts.argument("fusion", "every") if crossing else 1

    def gated(index: int, model: Any, state: State, data: Data) -> State:
        seen: Tensor = data["seen"]
        tokens = state["visual"].shape[1] // seen.shape[2]
        seen = seen.repeat_interleave(tokens, dim=-1)[:, None]
        own = data["sequences"].share(seen, dim=2)
        x = model.gated_blocks[index].look(state["x"], state["visual"], seen, own)
        gone = ("visual",) if (index + 1) * every >= layers else ()
        return passed(state, *gone, x=x)

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        context = data["context"](state["x"].dtype)
        return passed(state, x=model.language.layer(index, state["x"], context, None))

    def norm(model: Any, state: State, data: Data) -> State:
        return passed(state, x=model.language.norm(state["x"]))

    def head(model: Any, state: State, data: Data) -> State:
        logits = model.logits(data["sequences"].whole(state["x"]))
        loss = _summed(logits[:, :-1], data["labels"][:, 1:], data)
        return {"loss": loss}

    embeddings = ("language.embedding", "language.added_embedding")
    steps = [whole("fusion", project, "visual_projection")] if crossing else []
    steps.append(whole("language.begin", embed, *embeddings, "language.position_embedding"))
    for index in range(layers):
        if crossing and index % every == 0:
            number = index // every
            steps.append(unit(f"gated_blocks.{number}", at(gated, number), _gated))
        steps.append(unit(f"language.layers.{index}", at(layer, index)))
    tied = embeddings if parts.argument("head", "tied") else ()
    steps.append(whole("language.end", norm, "language.norm"))
    return [*steps, whole("head", head, "head", *tied)]


def _single_stream(parts: Parts) -> list[Step]:
    def mask_of(data: Data) -> Tensor:
        return torch.cat((data["attention_mask"], data["visual_mask"]), dim=1)

    def place(model: Any, state: State, data: Data) -> State:
        visual = state["visual"]
        visual = visual.reshape(data["input_ids"].shape[0], -1, visual.shape[-1])
        return passed(state, visual=model.place(visual, None, None))

    def embed(model: Any, state: State, data: Data) -> State:
        words, visual = model.language.embed(data["input_ids"]), state["visual"]
        x = model.language.embedding_norm(torch.cat((words, visual), dim=1))
        return passed(state, "visual", x=data["sequences"].share(x))

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        mask = mask_of(data)[:, None, None, :].bool()
        return passed(state, x=model.language.layers[index](state["x"], mask=mask))

    def head(model: Any, state: State, data: Data) -> State:
        known = {
            "hidden": data["sequences"].whole(state["x"]),
            "text_mask": data["attention_mask"],
            "embedding": model.language.embedding,
        }
        taken = inspect.signature(model.head.forward).parameters
        logits = model.head(**{name: known[name] for name in known if name in taken}).logits
        labels: Tensor = data["labels"]
        if labels.is_floating_point():
            given = F.kl_div(F.log_softmax(logits, dim=-1), labels, reduction="sum")
            return {"loss": given / data["total"]}
        if labels.ndim == 2:  # words of the text; visual tokens are not asked for
            logits = logits[:, : labels.shape[1]]
        return {"loss": _summed(logits, labels, data)}

    first = ("embedding", "position_embedding", "token_type_embedding", "embedding_norm")
    count = parts.argument("language", "layers")
    tied = ("language.embedding",) if parts.argument("head", "tied") else ()
    return [
        whole("fusion", place, "visual_type_embedding", "visual_position_embedding"),
        whole("language.begin", embed, *(f"language.{name}" for name in first)),
        *numbered(count, lambda n: unit(f"language.layers.{n}", at(layer, n))),
        whole("head", head, "head", *tied),
    ]


def _remembering(self: Any, x: Tensor, encoded: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    memory = self.cross.key_value(encoded)
    return self.forward(x, mask=mask, memory=memory, memory_mask=seen)


def _encoder_decoder(parts: Parts) -> list[Step]:
    def embed(model: Any, state: State, data: Data) -> State:
        x = _filled(model.language.embed(data["input_ids"]), state["visual"], data)
        return passed(state, "visual", x=data["sequences"].share(x))

    def encode(index: int, model: Any, state: State, data: Data) -> State:
        bias = data["bias"]("encoder")
        return passed(state, x=model.language.encoder_layers[index](state["x"], mask=bias))

    def turn(model: Any, state: State, data: Data) -> State:
        encoded = data["sequences"].whole(model.language.encoder_norm(state["x"]))
        labels: Tensor = data["labels"]
        start = torch.full_like(labels[:, :1], parts.argument("language", "start_token"))
        shifted = torch.cat((start, labels[:, :-1]), dim=1)
        shifted = shifted.masked_fill(shifted == -100, parts.argument("language", "pad_token"))
        x = data["sequences"].share(model.language.embed(shifted))
        return passed(state, encoded=encoded, x=x)

    def decode(index: int, model: Any, state: State, data: Data) -> State:
        bias = data["bias"]("decoder")
        seen = data["attention_mask"][:, None, None, :].bool()
        block = model.language.decoder_layers[index]
        gone = ("encoded",) if index + 1 == parts.argument("language", "decoder_layers") else ()
        return passed(state, *gone, x=block.look(state["x"], state["encoded"], bias, seen))

    def norm(model: Any, state: State, data: Data) -> State:
        return passed(state, x=model.language.decoder_norm(state["x"]))

    def head(model: Any, state: State, data: Data) -> State:
        logits = model.logits(data["sequences"].whole(state["x"]))
        return {"loss": _summed(logits, data["labels"], data)}

    def encoder_layer(n: int) -> Step:
        path = f"language.encoder_layers.{n}"
        return unit(path, at(encode, n), None, "language.encoder_bias")

    def decoder_layer(n: int) -> Step:
        path = f"language.decoder_layers.{n}"
        return unit(path, at(decode, n), _remembering, "language.decoder_bias")

    word = "language.embedding"
    tied = (word,) if parts.argument("head", "tied") else ()
    return [
        whole("language.begin", embed, word),
        *numbered(parts.argument("language", "encoder_layers"), encoder_layer),
        whole("language.between", turn, "language.encoder_norm", word),
        *numbered(parts.argument("language", "decoder_layers"), decoder_layer),
        whole("language.end", norm, "language.decoder_norm"),
        whole("head", head, "head", *tied),
    ]


def _summed(logits: Tensor, labels: Tensor, data: Data) -> Tensor:
    """Cross-entropy as this micro-batch's share of the mean over the whole step."""
    return (
        F.cross_entropy(
            logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        / data["total"]
    )


# --------------------------------------------------------------------------------------------------
# Images shared out over copies of the encoder, each on one rank or split over several.
# --------------------------------------------------------------------------------------------------


class SharedImages:
    """What the copies of an encoder in a tensor group do with the images of a micro-batch: each
    encodes its share, then all have the visual tokens of all. `group`: ranks that hold the same of
    their copies."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.ranks = DISTRIBUTED.get_world_size(group)
        self.rank = DISTRIBUTED.get_rank(group)

    def shared(self, data: Data) -> Data:
        """The micro-batch with this copy's images; blank ones fill the last share, so that every
        copy runs on as many."""
        images: Tensor = data["images"]
        share = -(-images.shape[0] // self.ranks)
        missing = share * self.ranks - images.shape[0]
        filled = torch.cat((images, images.new_zeros((missing, *images.shape[1:]))))
        return {**data, "images": filled[self.rank * share : (self.rank + 1) * share]}

    def gathered(self, state: State, data: Data) -> State:
        """The state with the visual tokens of all images."""
        visual: Tensor = _GATHER.apply(state["visual"], self.group)
        return passed(state, visual=visual[: data["images"].shape[0]])


class Gather(torch.autograd.Function):
    """What the ranks of a group made, put together on each of them, which all go on alike: the
    gradient of each share is a part of that of the whole."""

    @staticmethod
    def forward(ctx: Any, share: Tensor, group: Any) -> Tensor:
        ctx.group = group
        share = share.contiguous()
        ranks: int = DISTRIBUTED.get_world_size(group)
        found = share.new_empty((ranks * share.shape[0], *share.shape[1:]))
        # PyTorch 2.13 has a new name for it, and warns of the former.
        single = getattr(DISTRIBUTED, "all_gather_single", None)
        (single or DISTRIBUTED.all_gather_into_tensor)(found, share, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ranks: int = DISTRIBUTED.get_world_size(ctx.group)
        rank: int = DISTRIBUTED.get_rank(ctx.group)
        return gradients[0].tensor_split(ranks)[rank].contiguous(), None


_GATHER: Any = Gather


# --------------------------------------------------------------------------------------------------
# Sequences shared out over a tensor group between split layers (Korthikanti et al., 2022, 4.2).
# --------------------------------------------------------------------------------------------------


class Sequences:
    """Hidden states [rows, tokens, width] of which each rank of a group holds as many tokens as the
    others; without a group, all of them."""

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh

    def share(self, whole: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of what all ranks have made alike."""
        return self._moved(whole, Replicate(), Shard(dim))

    def whole(self, share: Tensor) -> Tensor:
        """All tokens, for what all ranks do alike: so the gradient of a share is a part of that of
        the whole."""
        return self._moved(share, Shard(1), Replicate())

    def _moved(self, tensor: Tensor, now: Placement, then: Placement) -> Tensor:
        if self.mesh is None:
            return tensor
        made = DTensor.from_local(tensor, self.mesh, [now], run_check=False)
        return made.redistribute(placements=[then]).to_local()


def enter_once(
    module: Any, mesh: DeviceMesh, *, shared: bool, itself: bool, masked: bool = False
) -> None:
    """Lets all projections of a split module read one tensor of the group, so that they sum its
    gradient up before ranks do. `shared`: it is given shares of sequences, which are gathered, and
    the gradient is scattered. `itself`: an attention whose keys and values are made of the queries'
    sequence; others are given whole ones for them. `masked`: its mask is of a share of the queries;
    that of all of them follows from what they see, its `seen`."""
    made: list[tuple[Tensor, Tensor]] = []

    def entered(x: Tensor, *, share: bool) -> Tensor:
        placement = Shard(1) if share else Replicate()
        one = DTensor.from_local(x, mesh, [placement], run_check=False)
        return one.redistribute(placements=[Replicate()]) if share else one

    def before(inner: Any, given: Any, named: Any) -> Any:
        source, x = made.pop() if made else (None, given[0])
        x = x if source is given[0] else entered(given[0], share=shared)
        if masked:
            # A row without a single key would be NaN: it sees all, and the block drops the result.
            seen: Tensor = module.__dict__.pop("seen")
            named = {**named, "mask": seen | ~seen.any(dim=-1, keepdim=True)}
        return (x, *given[1:]), named

    if hasattr(module, "key_value"):
        key_value = module.key_value

        def first(source: Tensor, *more: Any) -> Any:
            made[:] = [(source, entered(source, share=shared and itself))]
            return key_value(made[0][1], *more)

        module.key_value = first
    module.register_forward_pre_hook(before, with_kwargs=True)


# --------------------------------------------------------------------------------------------------
# Pipeline stages: a chain cut where the plan says, and what goes from one to the next.
# --------------------------------------------------------------------------------------------------


class Through(torch.autograd.Function):
    """Hands tensors on, and gives every input a gradient: what is sent behind something trained
    always asks for one, and always gets one, though a micro-batch shows no image. A pipeline's
    transfers are fixed; they fail where a gradient is missing."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [(one.shape, one.dtype, one.device) for one in tensors[count:]]
        # The same memory, but no view: a pipeline takes what it has sent out of its graph in place.
        return tuple(one.data for one in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        zeros = [torch.zeros(s, dtype=d, device=where) for s, d, where in ctx.shapes]
        return (None, *gradients, *zeros)


_THROUGH: Any = Through


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One stage's share of the chain."""

    index: int
    steps: tuple[Step, ...]
    reached: tuple[bool, ...]
    """Whether gradients pass through each step: it, or something before it, is trained."""
    fed: bool
    """Whether something before the stage is trained."""
    last: bool


def cuts(steps: Sequence[Step], plan: Plan, model: nn.Module) -> list[Cut]:
    """The stages of a plan. Raises UsageError where they do not follow the chain."""
    _check_depth(plan.stages, model)
    _check_checkpointing(steps, plan.checkpointing)
    names = [name for name, _ in model.named_parameters()]
    where = _places(steps, plan.stages, names)
    found: list[Cut] = []
    reached = False
    for index in range(len(plan.stages)):
        own = tuple(step for step, place in zip(steps, where, strict=True) if place == index)
        if not own:
            raise UsageError(f"stages[{index}] holds nothing that runs")
        fed = reached
        flags: list[bool] = []
        for step in own:
            reached = reached or any(role_of(n) in plan.trained for n in owned(step, names))
            flags.append(reached)
        last = index == len(plan.stages) - 1
        found.append(Cut(index=index, steps=own, reached=tuple(flags), fed=fed, last=last))
    return found


def unread(model: Any, steps: Sequence[Step]) -> list[nn.Module]:
    """Blocks of stacks that no step reads: the last one of an encoder whose features are taken
    before it."""
    names = [name for name, _ in model.named_parameters()]
    read = [name for step in steps for name in owned(step, names)]
    modules: dict[str, nn.Module] = dict(model.named_modules())
    return [
        block
        for path, stack in modules.items()
        if isinstance(stack, nn.ModuleList)
        for number, block in enumerate(stack)
        if not any(name.startswith(f"{path}.{number}.") for name in read)
    ]


def owned(step: Step, names: Sequence[str]) -> list[str]:
    """Those of the parameters that a step reads."""
    return [n for n in names if any(n == path or n.startswith(f"{path}.") for path in step.owns)]


def _check_depth(stages: Sequence[Sequence[Held]], model: Any) -> None:
    """Refuses numbers that a stack does not reach: no step would miss those blocks."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for index, stage in enumerate(stages):
        for one in stage:
            if "*" in one.block and one.final not in modules:
                raise UsageError(f"stages[{index}]: the model has no {one.final[:60]}")


def _check_checkpointing(steps: Sequence[Step], checkpointing: dict[str, str]) -> None:
    """Refuses names of no block, which would be kept whole in silence. What lies within a step
    that is never cut has no step of its own."""
    for key in checkpointing:
        if not any(_matches(key, s.name) or key.startswith(f"{s.name}.") for s in steps):
            raise UsageError(f"checkpointing: the model has no {key[:60]}")


def _places(
    steps: Sequence[Step], stages: Sequence[Sequence[Held]], names: Sequence[str]
) -> list[int]:
    """The stage of each step. One without parameters that the plan does not name goes with its
    part's step before it, else with what follows it."""
    found: list[int | None] = []
    for index, step in enumerate(steps):
        of = {i for i, held in enumerate(stages) if any(one.related(step.name) for one in held)}
        if len(of) > 1:
            raise UsageError(f"stages: {step.name} is held by more than one stage")
        if not of and owned(step, names):
            raise UsageError(f"stages: no stage holds {step.name}")
        before = index and role_of(steps[index - 1].name) == role_of(step.name)
        found.append(min(of) if of else found[-1] if before else None)
    following = len(stages) - 1
    placed: list[int] = []
    for place in reversed(found):
        following = following if place is None else place
        placed.append(following)
    placed.reverse()
    if placed != sorted(placed):
        bad = next(i for i in range(1, len(placed)) if placed[i] < placed[i - 1])
        raise UsageError(f"stages: {steps[bad].name} stands before what it follows in the model")
    return placed


def prune(model: nn.Module, cut: Cut, all_cuts: Sequence[Cut]) -> None:
    """Takes out the parameters of other stages. Those that no step reads go with the last step of
    their part."""
    names = [name for name, _ in model.named_parameters()]
    kept = {name for step in cut.steps for name in owned(step, names)}
    read = {name for one in all_cuts for step in one.steps for name in owned(step, names)}
    for name in names:
        if name in kept:
            continue
        if name not in read:
            of = [c.index for c in all_cuts for s in c.steps if role_of(s.name) == role_of(name)]
            if max(of, default=0) == cut.index:
                continue
        path, _, own = name.rpartition(".")
        model.get_submodule(path).register_parameter(own, None)


class Stage(nn.Module):
    """A share of a model. Tensors come in as the stage before sent them, and go out likewise; the
    last stage gives its micro-batch's share of the loss."""

    def __init__(self, parts: Parts, model: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.parts = parts
        self.model = model
        self.cut = cut
        self.images: SharedImages | None = None
        self.sequences = Sequences()
        self.partial: set[str] = set()
        """Parameters that see another share of the images or tokens on other ranks of a tensor
        group."""
        self.recomputed: list[nn.Module] = []
        """Modules whose forward pass the backward pass runs again."""
        self.always = False
        """Whether gradients go from stage to stage even where nothing before is trained: zeros,
        without which a schedule that puts gradients of weights off finds no way to them."""
        self.takes: tuple[str, ...] = ()
        self.fed: frozenset[str] = frozenset()
        """Of those, what something trained was made of: of others no gradient is worth making."""
        self.feed: list[Data] = []
        self.anchor = torch.zeros((), requires_grad=True)
        for step in cut.steps:
            if step.block is not None and step.look is not None:
                block = model.get_submodule(step.block)
                block.look = MethodType(step.look, block)  # type: ignore[assignment]

    def forward(self, *received: Tensor, number: Tensor) -> tuple[Tensor, ...] | Tensor:
        data = self.informed(self.feed[int(number)])
        given = zip(self.takes, received, strict=True)
        state = self.run({n: one if n in self.fed else one.detach() for n, one in given}, data)
        # Queries are there once for all images, until they are sent.
        sent = tuple(state[name].contiguous() for name in sorted(state))
        if not self.asks:
            return sent
        anchor = self.anchor.to(sent[0].device)
        sent = _THROUGH.apply(len(sent), *sent, *received, anchor)
        return sent[0] if self.cut.last else sent

    @property
    def asks(self) -> bool:
        """Whether gradients of what it sends come back."""
        return self.always or self.cut.last or self.cut.reached[-1]

    @property
    def answers(self) -> bool:
        """Whether it sends gradients of what it receives."""
        return self.always or self.cut.fed

    def informed(self, data: Data) -> Data:
        """The micro-batch with how its sequences are shared out, and with what all layers of a
        stack share, made when first asked for."""
        context = cache(partial(context_of, self.parts, self.model, data))
        bias = cache(partial(bias_of, self.model, data))
        return {**data, "sequences": self.sequences, "context": context, "bias": bias}

    def run(self, state: State, data: Data) -> State:
        """The stage's steps, without what a backward pass needs where none will come."""
        given = data if self.images is None else self.images.shared(data)
        for step, reached in zip(self.cut.steps, self.cut.reached, strict=True):
            with torch.set_grad_enabled(reached and torch.is_grad_enabled()):
                if self.images is not None and given is not data and not sees(step):
                    given, state = data, self.images.gathered(state, data)
                state = step.run(self.model, state, given)
        if self.images is not None and given is not data:
            state = self.images.gathered(state, data)
        return state


def sees(step: Step) -> bool:
    """Whether a step runs encoder or adapter."""
    return role_of(step.name) in ("encoder", "adapter")


def save_less(stage: Stage, checkpointing: dict[str, str]) -> list[nn.Module]:
    """Recomputes blocks in the backward pass where the plan says so: all of a block, or
    (selective) its attention. Gives what is recomputed."""
    found: list[nn.Module] = []
    for step in stage.cut.steps:
        if step.block is None:
            continue
        kind = next((v for k, v in checkpointing.items() if _matches(k, step.block)), "none")
        block: Any = stage.model.get_submodule(step.block)
        if kind == "selective":
            for attention in (getattr(block, name, None) for name in ("attention", "cross")):
                if attention is not None:
                    _recompute(attention, "forward")
                    found.append(attention)
        elif kind == "full":
            _recompute(block, "look" if step.look is not None else "forward")
            found.append(block)
    return found


def _recompute(module: Any, method: str) -> None:
    inner = getattr(module, method)

    def run(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*given, **named)
        return RECOMPUTATION.checkpoint(inner, *given, use_reentrant=False, **named)

    setattr(module, method, run)


def _matches(pattern: str, path: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return pattern == path
    return path.startswith(head) and path.endswith(tail) and path[len(head) :].isdigit()


# --------------------------------------------------------------------------------------------------
# Which tensors go from stage to stage, their shapes, and which of them gradients come back for:
# read off a run without numbers.
# --------------------------------------------------------------------------------------------------


def borders(
    parts: Parts, model: nn.Module, all_cuts: Sequence[Cut], data: Data, *, shares: int
) -> list[State]:
    """What leaves each stage, on the meta device, by name in order; `model` is the whole one on the
    meta device, in the number format that is computed in, `data` a micro-batch of the step's
    shapes. A language model's sequences go on in so many `shares`."""
    empty = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in data.items()}
    found: list[State] = []
    state: State = {}
    for cut in all_cuts:
        stage = Stage(parts, model, cut)
        state = stage.run(state, stage.informed(empty))
        state = {name: _leaf(state[name]) for name in sorted(state)}
        found.append({name: _share(name, value, shares) for name, value in state.items()})
    return found


def _leaf(value: Tensor) -> Tensor:
    """It, without what it was made of."""
    return value.detach().contiguous().requires_grad_(value.requires_grad)


def _share(name: str, value: Tensor, shares: int) -> Tensor:
    return value[:, : value.shape[1] // shares] if name == "x" else value


# --------------------------------------------------------------------------------------------------
# Tensor parallelism: projections shared out over the ranks of a group (Shoeybi et al., 2019).
# --------------------------------------------------------------------------------------------------


_COLUMNS = ("query", "key", "value", "distance", "gate", "up")
_ROWS = ("output", "down")
_OF_HEADS = {"content_bias": 0, "distance_bias": 0}
"""Parameters of an attention that have a row for each head."""
_HEAD_NORMS = ("query_norm", "key_norm")
VISION = ("encoder", "adapter")
"""Parts that may be split over fewer ranks than a tensor group has."""
_STACK_NORMS = ("language.norm", "language.encoder_norm", "language.decoder_norm")
"""Norms after a stack of blocks."""


def split(stage: Stage, tensor: DeviceMesh, vision: DeviceMesh, *, sequences: bool) -> None:
    """Shares the attention heads and hidden units of a stage's blocks out over `tensor`, those of
    encoder and adapter over `vision`. With `sequences` the ranks hold a share of a language model's
    tokens wherever these do not read each other. Frozen parameters stay frozen."""
    trained = {name: p.requires_grad for name, p in stage.named_parameters()}
    plans: dict[DeviceMesh, dict[str, ParallelStyle]] = {}
    model: Any = stage.model
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, module in modules.items():
        mesh = vision if role_of(path) in VISION else tensor
        if mesh.size() == 1:
            continue
        if _is_attention(module) or _is_mlp(module):
            shared = sequences and role_of(path) not in VISION
            made = _styles(module, Shard(1) if shared else Replicate())
            if made:
                plan = plans.setdefault(mesh, {})
                plan.update({f"{path}.{name}": style for name, style in made.items()})
                crosses = _is_attention(module) and path.startswith("gated_blocks.")
                itself = path.endswith(".attention") and not crosses
                masked = shared and crosses
                enter_once(module, mesh, shared=shared, itself=itself, masked=masked)
        if _is_attention(module):
            _share_heads(module, mesh)
        if path.endswith("_bias.table"):  # scores by distance: a column for each head
            share(module, "weight", mesh, Shard(1), Shard(1))
    # A tied head reads the embedding, which stays whole, as do the few words added to a vocabulary.
    projection = getattr(getattr(stage.model, "head", None), "projection", None)
    if isinstance(projection, nn.Linear) and _has_weight(projection):
        style = ColwiseParallel(output_layouts=Replicate())
        plans.setdefault(tensor, {})["head.projection"] = style
    for mesh, plan in plans.items():
        parallelize_module(stage.model, mesh, plan, src_data_rank=None)
    for name, parameter in stage.named_parameters():
        # Parallel modules are given new parameters, which would all ask for gradients.
        parameter.requires_grad_(trained[name])
    if sequences:
        _see_shares(stage, tensor)


def _see_shares(stage: Stage, mesh: DeviceMesh) -> None:
    """Sequences go through a stage as shares of their tokens."""
    stage.sequences = Sequences(mesh)
    stacks = [step.block for step in stage.cut.steps if step.block and not sees(step)]
    for name, parameter in stage.model.named_parameters():
        whole = isinstance(parameter, DTensor)  # split: it reads whole sequences
        in_stack = any(name.startswith(f"{path}.") for path in stacks)
        if not whole and (in_stack or name.startswith(_STACK_NORMS)):
            stage.partial.add(name)


def _styles(module: nn.Module, given: Placement) -> dict[str, ParallelStyle]:
    """How each projection of a block is shared out: by its outputs, then by its inputs, whose sums
    are `given` to all ranks or scattered."""
    found: dict[str, ParallelStyle] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and _has_weight(child):
            if name in _COLUMNS:
                found[name] = ColwiseParallel()
            elif name in _ROWS:
                found[name] = RowwiseParallel(output_layouts=given)
    return found


def _share_heads(attention: nn.Module, mesh: DeviceMesh) -> None:
    """What an attention has beside its projections: rows for each head, and norms of heads."""
    for name, dim in _OF_HEADS.items():
        share(attention, name, mesh, Shard(dim), Shard(dim))
    for name in _HEAD_NORMS:
        norm = getattr(attention, name, None)
        for own in ("weight", "bias") if isinstance(norm, nn.Module) else ():
            share(norm, own, mesh, Replicate(), Partial())


def share(
    module: Any, name: str, mesh: DeviceMesh, placement: Placement, gradient: Placement
) -> None:
    """Makes a parameter one of the whole group; code that runs in the module sees this rank's
    share, and its gradient is put together as `gradient` says."""
    parameter = module._parameters.get(name)
    if parameter is None:
        return
    made = torch.distributed.tensor.distribute_tensor(
        parameter.detach(), mesh, [placement], src_data_rank=None
    )
    setattr(module, name, nn.Parameter(made, requires_grad=parameter.requires_grad))

    inner = module.forward

    def run(*given: Any, **named: Any) -> Any:
        local = module._parameters[name]
        if isinstance(local, DTensor):
            local = local.to_local(grad_placements=[gradient])
        module.__dict__[name] = local
        try:
            return inner(*given, **named)
        finally:
            module.__dict__.pop(name, None)

    module.forward = run  # which checkpointing runs again, unlike hooks


def _has_weight(module: nn.Module) -> bool:
    """Whether it belongs to this stage."""
    return next(module.parameters(), None) is not None


def _is_attention(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("query", "key", "value", "output"))


def _is_mlp(module: nn.Module) -> bool:
    """A feed-forward network; a gate over channels (squeeze and excite) looks alike but is not."""
    return all(hasattr(module, name) for name in ("up", "down", "activation"))


# --------------------------------------------------------------------------------------------------
# A step's sequences as micro-batches of equal shapes.
# --------------------------------------------------------------------------------------------------


IGNORED = -100
"""The label of a token that is not asked for."""
_GRAIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence. Words hold an image token for each image (or as many as its visual tokens);
    where they hold none, the images stand before the words."""

    words: list[int]
    labels: list[int] | list[float] | int | None = None
    """Of words, -100 where one is not asked for; what a decoder of its own is to say; of a class,
    its number or all scores. None: the words themselves."""
    images: tuple[Tensor, ...] = ()


def micro_batches(
    parts: Parts, rows: Sequence[Row], *, data: int, replica: int, size: int, shares: int = 1
) -> list[Data]:
    """The micro-batches of one replica out of `data`, each of `size` rows. All micro-batches of a
    step have the same shapes on all ranks: a pipeline's transfers are fixed. `shares` divides the
    tokens of each sequence.

    Raises UsageError for a sequence that the model has no positions for.
    """
    placed = [_placed(parts, row) for row in rows]
    text = max(len(words) for words, _ in placed)
    text = -(-text // _GRAIN) * _GRAIN
    shown = max(1, *(len(row.images) for row in rows))
    taken = shown * parts.places if parts.fusion == "single_stream" else 0
    if parts.context is not None:
        longest = max(len(words) for words, _ in placed)
        if longest > parts.context:
            raise UsageError(f"a sequence of {longest} tokens; the model has {parts.context}")
        text = min(text, parts.context)
    text = _divisible(parts, text, taken, shares)
    groups = [list(range(i, i + size)) for i in range(0, len(rows), size)]
    if _each(parts):
        most = shown
    else:
        most = max(1, *(sum(len(rows[i].images) for i in group) for group in groups))
    total = _asked(parts, rows, placed)
    share = len(groups) // data
    own = groups[replica * share : (replica + 1) * share]
    return [_micro_batch(parts, rows, placed, g, text, most, total / data, shares) for g in own]


def _each(parts: Parts) -> bool:
    """Whether every sequence has room for the same number of images."""
    return parts.fusion in ("gated_cross_attention", "single_stream")


def _divisible(parts: Parts, text: int, after: int, shares: int) -> int:
    """So much text that `shares` divides it and the visual tokens `after` it together. Padding
    takes no position of the model's but in a single stream, where visual tokens leave it some."""
    length = text + -(text + after) % shares
    if after and parts.context is not None and length > parts.context:
        raise UsageError(
            f"{length} places for words, so that {shares} ranks share {length + after} tokens; the "
            f"model has {parts.context}"
        )
    return length


def _placed(parts: Parts, row: Row) -> tuple[list[int], list[int]]:
    """The words with a place for each visual token, and 1 where such a place is."""
    if parts.fusion == "single_stream":
        return row.words, [0] * len(row.words)
    token = parts.argument("fusion", "image_token")
    found = [] if token is None else [i for i, word in enumerate(row.words) if word == token]
    count = len(row.images)
    each = 1 if parts.fusion == "gated_cross_attention" else parts.places
    if len(found) == count * each:
        is_place = [int(word == token) for word in row.words] if found else [0] * len(row.words)
        return row.words, is_place
    if found and len(found) != count:
        raise UsageError(f"{len(found)} image tokens among the words, but {count} images")
    if not found:
        filler = 0 if token is None else token
        return [filler] * (count * each) + row.words, [1] * (count * each) + [0] * len(row.words)
    words: list[int] = []
    is_place: list[int] = []
    for word in row.words:
        times = each if word == token else 1
        words += [word] * times
        is_place += [int(word == token)] * times
    return words, is_place


def _labels(parts: Parts, row: Row, placed: tuple[list[int], list[int]]) -> list[int]:
    """Labels of a row's words (or of its answer, where a decoder of its own says it)."""
    words, is_place = placed
    if isinstance(row.labels, list):
        given = [int(label) for label in row.labels]
        if parts.target or len(given) == len(words):
            return given
        if len(given) == len(row.words):
            spread = iter(given)
            if len(words) - sum(is_place) == len(given):
                return [IGNORED if place else next(spread) for place in is_place]
        raise UsageError(f"{len(given)} labels for {len(row.words)} words")
    return [IGNORED if place else word for word, place in zip(words, is_place, strict=True)]


def _classes(parts: Parts) -> bool:
    return parts.parts["head"].kind == "classify"


def _asked(
    parts: Parts, rows: Sequence[Row], placed: Sequence[tuple[list[int], list[int]]]
) -> float:
    """What the step's loss is the mean over: labels that count, or rows."""
    if _classes(parts):
        return float(len(rows))
    shift = 1 if parts.fusion != "single_stream" and not parts.target else 0
    labels = (_labels(parts, row, p)[shift:] for row, p in zip(rows, placed, strict=True))
    return float(max(1, sum(label != IGNORED for row in labels for label in row)))


def _padded(rows: Sequence[list[int]], length: int, value: int) -> Tensor:
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def _micro_batch(
    parts: Parts,
    rows: Sequence[Row],
    placed: Sequence[tuple[list[int], list[int]]],
    group: Sequence[int],
    text: int,
    most: int,
    total: float,
    shares: int,
) -> Data:
    words = [placed[i][0] for i in group]
    given: Data = {
        "input_ids": _padded(words, text, 0),
        "attention_mask": _padded([[1] * len(row) for row in words], text, 0),
        "places": _padded([placed[i][1] for i in group], text, 0).bool(),
        "images": _images(parts, [rows[i] for i in group], most, _shape(parts, rows)),
        "total": total,
    }
    if _classes(parts):
        kept = [rows[i].labels for i in group]
        given["labels"] = torch.tensor(kept)
    elif parts.target:
        labels = [_labels(parts, row, p) for row, p in zip(rows, placed, strict=True)]
        longest = max(len(row) for row in labels)
        longest += -longest % shares
        given["labels"] = _padded([labels[i] for i in group], longest, IGNORED)
    else:
        labels = [_labels(parts, rows[i], placed[i]) for i in group]
        given["labels"] = _padded(labels, text, IGNORED)
    if parts.fusion == "gated_cross_attention":
        before = given["places"].cumsum(dim=1)[..., None]
        number = torch.arange(1, most + 1)
        previous = parts.argument("fusion", "all_previous")
        given["seen"] = number <= before if previous else number == before
    if parts.fusion == "single_stream":
        shown = torch.tensor([len(rows[i].images) for i in group])
        regions = (torch.arange(most) < shown[:, None]).long()
        given["visual_mask"] = regions.repeat_interleave(parts.places, dim=1)
    return given


def _shape(parts: Parts, rows: Sequence[Row]) -> tuple[int, ...]:
    """The shape of every image of a step. Raises UsageError where they are unlike."""
    shapes = {tuple(image.shape) for row in rows for image in row.images} or {parts.still}
    if len(shapes) > 1:
        raise UsageError(f"images of unlike shapes in a step: {sorted(shapes)}")
    return shapes.pop()


def _images(parts: Parts, rows: Sequence[Row], most: int, shape: tuple[int, ...]) -> Tensor:
    """All images of a micro-batch in their order, blank ones for those that are not there: every
    rank runs the same encoder, whatever it is shown."""
    blank = torch.zeros(shape)
    each = _each(parts)
    found: list[Tensor] = []
    for row in rows:
        found += row.images
        found += [blank] * (most - len(row.images) if each else 0)
    found += [blank] * (most * (len(rows) if each else 1) - len(found))
    return torch.stack(found)


# --------------------------------------------------------------------------------------------------
# Gradients of weights that a schedule puts off (zero_bubble), where PyTorch's own way fails.
# --------------------------------------------------------------------------------------------------


class PuttingOff(PipelineStage):
    """A stage on which weights may act at several places of what its inputs lead to.

    PyTorch 2.13 groups weights by the places where they meet the gradients of inputs. Embeddings
    of words, read by the first gated block and by the residual around it, meet them twice: the way
    from one place to the other crosses places of other groups, freed by whoever goes first, and
    such a weight can be in two groups and be counted twice."""

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        if backward_type != "weight":
            whole: Any = super()
            return whole.backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        # The pass for inputs, which comes before, has told FSDP2 to hold gradients back.
        stage: Any = self.submod
        groups = together(apart(bwd_kwargs["param_groups"]), stage.recomputed)
        groups = [group for group in groups if not taken_in(group, stage.recomputed)]
        weights = stage.parameters()
        # The graph goes with the groups, after all of them.
        return PIPELINING.stage_backward_weight(weights, groups, retain_graph=True), None


def apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with each weight in the first that has it alone: any of them knows all places
    where it acts."""
    seen: set[Any] = set()
    for group in groups:
        group["params"] = group["params"] - seen
        seen |= group["params"]
    return [group for group in groups if group["params"]]


def together(groups: list[dict[str, Any]], recomputed: list[nn.Module]) -> list[dict[str, Any]]:
    """The groups, one for all weights of a module that is computed again: PyTorch would do so for
    each of its groups. What reaches a place from another of the same group is not counted, as
    PyTorch puts the gradient that was found for the place there."""
    of = {id(weight): at for at, module in enumerate(recomputed) for weight in module.parameters()}
    found: list[dict[str, Any]] = []
    whole: dict[int, dict[str, Any]] = {}
    for group in groups:
        at = next((of[id(one.variable)] for one in group["params"] if id(one.variable) in of), None)
        if at is None or at not in whole:
            found.append(group)
        if at is not None:
            first = whole.setdefault(at, group)
            if first is not group:
                for name in ("params", "intermediates", "grads"):
                    first[name] = type(first[name])([*first[name], *group[name]])
    return found


def taken_in(group: dict[str, Any], recomputed: list[nn.Module]) -> bool:
    """Whether a group's gradients were made here: those of weights that act at several places, as a
    tied embedding does at the words and in the head. PyTorch goes from the one to the other through
    all that lies between, once more; but what each place was given is known. Not so of a weight
    that places reach by one way, such as a table that all blocks read: one place leads there
    through others, and PyTorch sees to it that nothing counts twice."""
    again = {id(weight) for module in recomputed for weight in module.parameters()}
    places: list[Any] = list(group["intermediates"])
    if len(places) < 2 or any(id(weight.variable) in again for weight in group["params"]):
        return False
    ways = [[way for way in place.next_functions if _weights_behind(way[0])] for place in places]
    reached = [one for own in ways for way in own for one in _weights_behind(way[0])]
    if any(reached.count(node) > 1 for own in ways for node, _ in own):
        return False
    entered: list[tuple[GradientEdge, Tensor]] = []
    for place, given, own in zip(places, group["grads"], ways, strict=True):
        roots = [(GradientEdge(place, n), one) for n, one in enumerate(given) if one is not None]
        made = zip(own, _gradients(roots, own), strict=True)
        entered += [(GradientEdge(*way), one) for way, one in made if one is not None]
    weights = [(weight, 0) for weight in group["params"]]
    for (weight, _), one in zip(weights, _gradients(entered, weights), strict=True):
        if one is not None:
            own = weight.variable
            own.grad = one if own.grad is None else own.grad + one
    return True


def _gradients(
    roots: list[tuple[GradientEdge, Tensor]], ways: list[tuple[Any, int]]
) -> tuple[Tensor | None, ...]:
    """What comes from `roots` along `ways` alone."""
    if not roots or not ways:
        return (None,) * len(ways)
    return torch.autograd.grad(
        [edge for edge, _ in roots],
        [GradientEdge(*way) for way in ways],
        grad_outputs=[one for _, one in roots],
        retain_graph=True,
        allow_unused=True,
    )


def _weights_behind(node: Any) -> set[Any]:
    """What is reached from a node, itself included; nothing where that is not weights alone, but
    what the stage received, too: tensors that are no parameters."""
    seen, left = {node}, [node]
    while left:
        one = left.pop()
        if one is None or not isinstance(getattr(one, "variable", None), nn.Parameter | None):
            return set()
        following = [way for way, _ in one.next_functions if way is not None and way not in seen]
        seen.update(following)
        left += following
    return seen


# --------------------------------------------------------------------------------------------------
# Parameters that several stages read: each stage has a copy.
# --------------------------------------------------------------------------------------------------


class Copies:
    """The copies of trained parameters (of a tied embedding) that a rank and others hold. All ranks
    of a mesh make one."""

    def __init__(self, cuts: Sequence[Cut], trained: Sequence[str], mesh: DeviceMesh) -> None:
        size, own = mesh["pipeline"].size(), mesh["pipeline"].get_local_rank()
        stages: dict[str, list[int]] = {}
        for cut in cuts:
            for name in {name for step in cut.steps for name in owned(step, trained)}:
                stages.setdefault(name, []).append(cut.index)
        self.names: dict[str, Any] = {}
        """With the group of ranks that hold them; None where one rank holds all copies."""
        made: dict[tuple[int, ...], Any] = {}
        for name in trained:
            read = stages.get(name, [])
            place = tuple(sorted({index % size for index in read}))
            if len(read) > 1 and place not in made:
                made[place] = _holders(place, mesh)
            if len(read) > 1 and own in place:
                self.names[name] = made[place]

    def add_up(self, stages: Sequence[Stage]) -> None:
        """Gives each copy the sum of the gradients of all."""
        for name, group in self.names.items():
            own = [p for s in stages for n, p in s.model.named_parameters() if n == name]
            for parameter in own:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            total, *others = [local_of(p.grad) for p in own if p.grad is not None]
            for other in others:
                total += other
            if group is not None:
                DISTRIBUTED.all_reduce(total, group=group)
            for other in others:
                other.copy_(total)


def _holders(place: Sequence[int], mesh: DeviceMesh) -> Any:
    """This rank's group with those that lie as it does in some groups of the pipeline."""
    if len(place) == 1:
        return None
    if len(place) == mesh["pipeline"].size():
        return mesh["pipeline"].get_group()
    ranks: Any = mesh.mesh[list(place)].flatten(1).T
    return DISTRIBUTED.new_subgroups_by_enumeration(ranks.tolist())[0]


def local_of(tensor: Tensor) -> Tensor:
    """A rank's own part of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# --------------------------------------------------------------------------------------------------
# A plan at work: the model of a build on the ranks of a mesh.
# --------------------------------------------------------------------------------------------------


_AXES = ("pipeline", "replicate", "shard", "copies", "vision")
"""The last two are of a tensor group: copies of encoder and adapter, and ranks that share each."""


class Engine:
    """This rank's stages of a model, ready to take steps.

    `model_py` is the module of the build's model.py; `weights` its folder of weights. All ranks of
    the plan's mesh make one, in the same order of plans.
    """

    def __init__(
        self, parts: Parts, plan: Plan, model_py: Any, weights: Path, device: torch.device
    ) -> None:
        self.parts, self.plan, self.device = parts, plan, device
        mesh = plan.mesh
        shard = mesh.data if plan.zero else 1
        vision = plan.encoder_tensor
        sizes = (mesh.pipeline, mesh.data // shard, shard, mesh.tensor // vision, vision)
        self.mesh = init_device_mesh(device.type, sizes, mesh_dim_names=_AXES)
        both: Any = self.mesh["copies", "vision"]
        self.tensor: DeviceMesh = both._flatten("tensor")
        place = dict(zip(_AXES, self.mesh.get_coordinate() or (), strict=True))
        self.group = place["pipeline"]
        self.replica = place["replicate"] * shard + place["shard"]
        self.dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        self.looped = whole_weights(plan.schedule, mesh.pipeline)
        with torch.device("meta"):
            self.whole: nn.Module = model_py.build().to(self.dtype)
        for name, parameter in self.whole.named_parameters():
            parameter.requires_grad_(role_of(name) in plan.trained)
        steps = [*vision_steps(parts), *word_steps(parts)]
        self.cuts = cuts(steps, plan, self.whole)
        self.stages = [
            self._stage(cut.index, model_py, weights)
            for cut in self.cuts
            if cut.index % mesh.pipeline == self.group
        ]
        self._schedules: dict[Any, Any] = {}
        trained = [n for n, _ in self.whole.named_parameters() if role_of(n) in plan.trained]
        self._copies = Copies(self.cuts, trained, self.mesh)

    def _stage(self, index: int, model_py: Any, weights: Path) -> Stage:
        """A stage with its weights, split and sharded."""
        cut, plan = self.cuts[index], self.plan
        with torch.device("meta"):
            model = model_py.build()
        model_py.load_weights(model, weights)
        prune(model, cut, self.cuts)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(role_of(name) in plan.trained)
        stage = Stage(self.parts, model, cut)
        for parameter in stage.parameters():
            # Master weights in fp32; frozen ones as they are computed with.
            if parameter.is_floating_point():
                dtype = torch.float32 if parameter.requires_grad else self.dtype
                parameter.data = parameter.data.to(dtype)
        if plan.mesh.tensor > 1:
            apart = plan.encoder_tensor < plan.mesh.tensor
            vision = self.mesh["vision"] if apart else self.tensor
            split(stage, self.tensor, vision, sequences=plan.sequence_parallel)
            if apart and sees(cut.steps[0]):
                stage.images = SharedImages(self.mesh["copies"].get_group())
                names = [name for name, _ in stage.model.named_parameters()]
                stage.partial |= {n for n in names if role_of(n) in VISION}
        stage.recomputed = save_less(stage, plan.checkpointing)
        if plan.mesh.data > 1 or self.dtype != torch.float32:
            self._shard(stage)
        return stage.to(self.device)

    def _shard(self, stage: Stage) -> None:
        policy = MixedPrecisionPolicy()
        if self.dtype != torch.float32:
            policy = MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        zero = self.plan.zero
        replicas = self.mesh["replicate", "shard"] if zero == 0 else self.mesh["shard"]
        options: dict[str, Any] = {"mesh": replicas, "mp_policy": policy}
        options["reshard_after_forward"] = not self._keeps_whole
        # FSDP2 shards no numbers: they stay whole, and their gradients are averaged by hand. It
        # would keep a copy of frozen weights that nothing shards.
        options["ignored_params"] = ignored = {
            p for p in stage.parameters() if p.ndim == 0 or (zero < 3 and not p.requires_grad)
        }
        for step in stage.cut.steps:
            if step.block is None:
                continue
            block = stage.model.get_submodule(step.block)
            if all(parameter in ignored for parameter in block.parameters()):
                continue
            fully_shard(block, **options)
            if step.look is not None:
                register_fsdp_forward_method(block, "look")
        apart = [
            block
            for block in reversed(unread(stage.model, stage.cut.steps))
            if not all(parameter in ignored for parameter in block.parameters())
        ]
        for block in apart:
            fully_shard(block, **options)  # a unit of its own is never gathered
        _fetch_nothing_unread(stage)
        sharded: FSDPModule = fully_shard(stage, **options)
        stage.__dict__["set_requires_gradient_sync"] = partial(
            _hold_back, sharded.set_requires_gradient_sync, apart
        )
        if self.plan.mesh.pipeline > 1:
            # A pipeline would keep all that a backward pass gathered, and whole gradients, until
            # the end of the step; the latter is what ZeRO 1 and 0 mean.
            if not self._keeps_whole:
                stage.__dict__["set_reshard_after_backward"] = _as_it_is
            if zero >= 2:
                stage.__dict__["set_requires_gradient_sync"] = _as_it_is

    @property
    def _keeps_whole(self) -> bool:
        """Whether weights stay gathered from a step's first forward pass to its end."""
        return self.plan.zero in (1, 2) or self.looped

    def step(self, rows: Sequence[Row]) -> float:
        """Gradients of the mean loss over the sequences of a step, and that loss. They are added to
        what gradients there are."""
        plan = self.plan
        given = micro_batches(
            self.parts, rows, data=plan.mesh.data, replica=self.replica, size=plan.micro_batch,
            shares=plan.shares,
        )  # fmt: skip
        feed = [{k: self._here(k, v) for k, v in one.items()} for one in given]
        for stage in self.stages:
            stage.feed = feed
        losses = self._piped(feed) if plan.mesh.pipeline > 1 else self._alone(len(feed))
        for stage in self.stages:
            for parameter in stage.parameters():
                _put_together(parameter)
            self._add_shares(stage)
            for parameter in stage.parameters():
                if parameter.ndim == 0 and parameter.requires_grad and plan.mesh.data > 1:
                    self._average(parameter)
        self._copies.add_up(self.stages)
        own = sum((loss.detach().double() for loss in losses), torch.zeros((), dtype=torch.double))
        first = self.tensor.get_local_rank() == 0
        own = own.cpu() / plan.mesh.data if first else torch.zeros(()).double()
        own = own.to(self.device)
        DISTRIBUTED.all_reduce(own)
        return float(own)

    def _add_shares(self, stage: Stage) -> None:
        """Sums gradients of what saw a share of the images or of the tokens on each rank."""
        for name, parameter in stage.model.named_parameters():
            if parameter.grad is not None and name in stage.partial:
                ranks = self.mesh["copies"] if role_of(name) in VISION else self.tensor
                DISTRIBUTED.all_reduce(local_of(parameter.grad), group=ranks.get_group())

    def _average(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        for axis in ("replicate", "shard"):
            DISTRIBUTED.all_reduce(parameter.grad, group=self.mesh[axis].get_group())
        parameter.grad /= self.plan.mesh.data

    def _here(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if name == "images" else value.dtype)

    def _alone(self, count: int) -> list[Tensor]:
        """The micro-batches one after the other. Gradients that are sharded are reduced with each
        of them, others with the last."""
        (stage,) = self.stages
        losses: list[Tensor] = []
        for number in range(count):
            if isinstance(stage, FSDPModule):
                last = number == count - 1
                stage.set_requires_gradient_sync(last or self.plan.zero >= 2)
                stage.set_reshard_after_backward(last or not self._keeps_whole)
            loss = stage(number=torch.tensor([number]))
            loss.backward()
            losses.append(loss)
        return losses

    def _piped(self, feed: Sequence[Data]) -> list[Tensor]:
        schedule = self._schedule(feed)
        numbers = torch.arange(len(feed))
        losses: list[Tensor] = []
        schedule.step(number=numbers, target=numbers, losses=losses, return_outputs=False)
        return losses

    def _schedule(self, feed: Sequence[Data]) -> Any:
        """PyTorch's schedule for micro-batches of these shapes."""
        key = tuple(
            (k, tuple(v.shape)) for k, v in sorted(feed[0].items()) if isinstance(v, Tensor)
        )
        if key not in self._schedules:
            sent = borders(self.parts, self.whole, self.cuts, feed[0], shares=self.plan.shares)
            self._schedules = {key: self._made(sent, len(feed))}
        return self._schedules[key]

    def _made(self, sent: Sequence[dict[str, Tensor]], count: int) -> Any:
        stages: list[Any] = []
        for stage in self.stages:
            index = stage.cut.index
            before = sent[index - 1] if index else {}
            stage.takes = tuple(before)
            stage.fed = frozenset(name for name, one in before.items() if one.requires_grad)
            stage.always = puts_off(self.plan.schedule, self.plan.mesh.pipeline)
            made = PuttingOff(
                stage,
                index,
                len(self.cuts),
                self.device,
                input_args=tuple(_asking(one, stage.answers) for one in before.values()),
                output_args=tuple(_asking(one, stage.asks) for one in sent[index].values()),
                group=self.mesh["pipeline"].get_group(),
            )
            stages.append(made)
        options: dict[str, Any] = {"loss_fn": _handed_on, "scale_grads": False}
        match self.plan.schedule:
            case "gpipe":
                return ScheduleGPipe(stages[0], count, **options)
            case "1f1b":
                return Schedule1F1B(stages[0], count, **options)
            case "interleaved":
                return ScheduleInterleaved1F1B(stages, count, **options)
            case _:
                return ScheduleInterleavedZeroBubble(stages, count, **options)

    def parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by their names in model.py. One that two of its stages read is
        there once for each."""
        return {n: p for stage in self.stages for n, p in stage.model.named_parameters()}


def _fetch_nothing_unread(stage: Stage) -> None:
    """FSDP2 gathers the block before the one that runs backward ahead of time, also where no
    gradient goes there: the first that one reaches is to fetch itself, which is there."""
    steps = zip(stage.cut.steps, stage.cut.reached, strict=True)
    first = next((step.block for step, reached in steps if reached and step.block), None)
    block = None if first is None else stage.model.get_submodule(first)
    if isinstance(block, FSDPModule):
        block.set_modules_to_backward_prefetch([block])


def _as_it_is(*given: Any, **named: Any) -> None:
    """In place of a setting that a pipeline would change."""


def _hold_back(others: Callable[[bool], None], apart: Sequence[Any], sync: bool) -> None:
    """Whether gradients are reduced with the next backward pass. FSDP2 looks for those that it is
    to hold back, and fails on blocks that were never gathered, which have none."""
    others(sync)
    for block in apart:
        block.set_requires_gradient_sync(True)


def _asking(meta: Tensor, asks: bool) -> Tensor:
    return torch.empty_like(meta, requires_grad=asks)


def _handed_on(loss: Tensor, number: Tensor) -> Tensor:
    return loss


def _put_together(parameter: nn.Parameter) -> None:
    """Brings a gradient to where its parameter lies."""
    own: Any = parameter
    grad: Any = parameter.grad
    both = isinstance(grad, DTensor) and isinstance(parameter, DTensor)
    if both and grad.placements != own.placements:
        parameter.grad = grad.redistribute(placements=own.placements)


# --------------------------------------------------------------------------------------------------
# Distributed checkpoints: written by any plan, read by any other of the same design.
# --------------------------------------------------------------------------------------------------


_ABOUT = "training.json"


def save_training(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    about: Mapping[str, Any],
) -> None:
    """Writes weights and the optimiser's state, each rank its share; `about` beside them."""
    STORAGE.save(_state(parameters, optimiser), checkpoint_id=str(folder))
    if DISTRIBUTED.get_rank() == 0:
        (folder / _ABOUT).write_text(json.dumps(dict(about)))
    DISTRIBUTED.barrier()


def said_of(folder: Path) -> dict[str, Any]:
    """What was said about a checkpoint. Raises UsageError where there is none."""
    try:
        about: dict[str, Any] = json.loads((folder / _ABOUT).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no checkpoint of a training run: {error}") from None
    return about


def load_training(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None
) -> None:
    """Puts what `save_training` wrote into place, whatever plan wrote it: weights, and the state of
    the optimiser, if one is given."""
    STORAGE.load(_state(parameters, optimiser), checkpoint_id=str(folder))


def _state(
    parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer | None
) -> dict[str, Any]:
    """Tensors of a checkpoint by name: weights, and what the optimiser keeps of the trained ones
    (made first where no step was taken yet)."""
    state: dict[str, Any] = {f"model.{name}": p.detach() for name, p in parameters.items()}
    if optimiser is None:
        return state
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            for what, value in _kept(optimiser, parameter).items():
                state[f"optimiser.{name}.{what}"] = value
    return state


def _kept(optimiser: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    own: dict[str, Any] = optimiser.state[parameter]
    if not own and isinstance(optimiser, torch.optim.AdamW):
        own["step"] = torch.zeros(())
        own["exp_avg"] = torch.zeros_like(parameter)
        own["exp_avg_sq"] = torch.zeros_like(parameter)
    return {what: value for what, value in own.items() if isinstance(value, Tensor)}


# --------------------------------------------------------------------------------------------------
# A training run: steps of an optimiser over an engine.
# --------------------------------------------------------------------------------------------------


class Training:
    """Trains what the plan trains. Frozen parameters have no place in the optimiser."""

    def __init__(self, engine: Engine, *, learning_rate: float) -> None:
        self.engine = engine
        self.steps = 0
        trained = [p for s in engine.stages for p in s.parameters() if p.requires_grad]
        # One call over many tensors needs them to be of one kind.
        alike = len({(isinstance(p, DTensor), getattr(p, "device_mesh", None)) for p in trained})
        made = torch.optim.AdamW if engine.plan.optimiser == "adamw" else torch.optim.SGD
        given = trained or [torch.zeros((), requires_grad=True)]  # a rank whose stages are frozen
        self.optimiser: torch.optim.Optimizer = made(
            given, lr=learning_rate, foreach=None if alike == 1 else False
        )

    def step(self, rows: Sequence[Row]) -> float:
        """One step over the sequences of a batch: the mean loss before it."""
        self.optimiser.zero_grad()
        loss = self.engine.step(rows)
        self.optimiser.step()
        self.steps += 1
        return loss

    def save(self, folder: Path) -> None:
        """Writes a checkpoint that any plan of this design goes on from."""
        about = {"steps": self.steps, **self._design(), **self._kind()}
        save_training(folder, self.engine.parameters(), self.optimiser, about)

    def resume(self, folder: Path) -> bool:
        """Goes on from a checkpoint. Where that trained other parts, or with another optimiser, as
        an earlier stage did, its weights are taken and its steps are not; whether they were. Raises
        UsageError for one of another design."""
        about = said_of(folder)
        if any(about.get(key, value) != value for key, value in self._design().items()):
            raise UsageError(
                f"{folder} is a checkpoint of another design: {about.get('design')} "
                f"({str(about.get('spec', ''))[:12]})"
            )
        alike = all(about.get(key, value) == value for key, value in self._kind().items())
        load_training(folder, self.engine.parameters(), self.optimiser if alike else None)
        self.steps = int(about["steps"]) if alike else 0
        return alike

    def _design(self) -> dict[str, Any]:
        return {"design": self.engine.parts.name, "spec": self.engine.parts.spec}

    def _kind(self) -> dict[str, Any]:
        """What the optimiser's state belongs to."""
        plan = self.engine.plan
        return {"trained": sorted(plan.trained), "optimiser": plan.optimiser}


# --------------------------------------------------------------------------------------------------
# Training data: a file of token ids and images, or sequences drawn from a seed.
# --------------------------------------------------------------------------------------------------


_LINE_KEYS = {"input_ids", "labels", "pixel_values"}


def lines_of(path: Path, size: int) -> list[tuple[int, str]]:
    """The lines of a JSON Lines file that hold sequences, with their numbers. Raises UsageError
    where they are fewer than a batch of `size`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    given = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if len(given) < size:
        raise UsageError(f"{path} holds {len(given)} sequences, fewer than a batch of {size}")
    return given


def batches_of(
    lines: Sequence[tuple[int, str]],
    path: Path,
    parts: Parts,
    size: int,
    read: Callable[[Path], dict[str, Tensor]],
) -> Iterator[list[Row]]:
    """The sequences of a file's lines, `size` at a time, over and over.

    A line holds `input_ids`; `labels` where they are not the words themselves; `pixel_values`, the
    name of a safetensors file beside it with `pixel_values` [images, ...], or region features.
    Raises UsageError, naming the line.
    """
    rows = (_row(path, n, line, parts, read) for n, line in cycle(lines))
    while True:
        yield list(islice(rows, size))


def synthetic(parts: Parts, size: int, *, text: int, images: int, seed: int) -> Iterator[list[Row]]:
    """Batches drawn from a seed, the same on all ranks. Of the `text` tokens of a sequence those
    that stand for images, which are stills, are put in later, as visual tokens are beside them."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(parts.argument("language", "vocabulary"))
    token = parts.argument("fusion", "image_token")
    most = min(vocabulary, token if isinstance(token, int) else vocabulary)
    head = parts.parts["head"]
    length = text - images * parts.image_words
    while True:
        batch: list[Row] = []
        for _ in range(size):
            drawn: Any = torch.randint(0, most, (length,), generator=generator)
            pictures = tuple(torch.randn(parts.still, generator=generator) for _ in range(images))
            words: list[int] = drawn.tolist()
            labels: Any = words if parts.target else None
            if head.kind == "classify":
                classes = head.arguments["classes"]
                labels = int(torch.randint(0, classes, (1,), generator=generator))
            batch.append(Row(words=words, labels=labels, images=pictures))
        yield batch


def _row(
    path: Path, number: int, line: str, parts: Parts, read: Callable[[Path], dict[str, Tensor]]
) -> Row:
    where = f"{path}, line {number}"
    try:
        document: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from None
    if not is_a(document, dict) or not _LINE_KEYS >= set(document) >= {"input_ids"}:
        raise UsageError(f"{where}: expected input_ids, and labels and pixel_values where needed")
    words, labels = document["input_ids"], document.get("labels")
    vocabulary = parts.vocabulary
    token = parts.argument("fusion", "image_token")
    if not _token_ids(words) or any(not 0 <= w < vocabulary and w != token for w in words):
        raise UsageError(f"{where}: input_ids must list token ids below {vocabulary}")
    head = parts.parts["head"]
    if head.kind == "classify":
        classes = int(head.arguments["classes"])
        if not isinstance(labels, int) or isinstance(labels, bool) or not 0 <= labels < classes:
            raise UsageError(f"{where}: labels must be a class from 0 to {classes - 1}")
    elif labels is not None and (
        not _token_ids(labels)
        or any(not 0 <= one < vocabulary and one != IGNORED for one in labels)
    ):
        raise UsageError(
            f"{where}: labels must list token ids below {vocabulary}, or {IGNORED} where no word "
            f"is asked for"
        )
    return Row(words=words, labels=labels, images=_pictures(path, where, document, parts, read))


def _pictures(
    path: Path,
    where: str,
    document: dict[str, Any],
    parts: Parts,
    read: Callable[[Path], dict[str, Tensor]],
) -> tuple[Tensor, ...]:
    name = document.get("pixel_values")
    if name is None:
        return ()
    try:
        found = read(path.parent / str(name))["pixel_values"].float()
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{where}: {name} holds no pixel_values: {error!r}") from None
    fits = any(
        found.ndim == len(shape) + 1
        and all(a == b for a, b in zip(found.shape[-3:], shape[-3:], strict=False))
        for shape in (parts.image, parts.still)
    )
    if not fits:
        raise UsageError(
            f"{where}: pixel_values have the shape {list(found.shape)}, expected [images, "
            f"{', '.join(map(str, parts.image))}]"
        )
    return tuple(found)


def _token_ids(value: Any) -> bool:
    """Whether a value is a list of whole numbers, one at least."""
    return (
        is_a(value, list)
        and len(value) > 0
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    )


# --------------------------------------------------------------------------------------------------
# The command line of a training run.
# --------------------------------------------------------------------------------------------------


LEARNING_RATE = 1e-5
"""Where neither the call nor the plan has one."""


def train_main(parts: Parts, folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Trains the build in `folder` as the plan says; the exit code: 2 where the user is at fault.
    Every rank runs it."""
    asked = _options().parse_args(arguments)
    first = int(os.environ.get("RANK", "0")) == 0
    try:
        _train(parts, folder, asked, say=first)
    except UsageError as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N parallel/train.py",
        description="Trains the build that this file lies in, as a plan of `vlmc plan` says.",
        allow_abbrev=False,
    )
    made.add_argument("--plan", type=Path, required=True, help="plan.yaml")
    made.add_argument("--data", type=Path, help="JSON Lines: input_ids, labels, pixel_values")
    made.add_argument("--synthetic", action="store_true", help="sequences drawn from --seed")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--steps", type=int, help="default: the plan's epochs of the data, else 1")
    made.add_argument("--learning-rate", type=float, help="default: the plan's, else 1e-5")
    made.add_argument("--resume", type=Path, help="a checkpoint of any plan of this design")
    made.add_argument("--save", type=Path, help="where a checkpoint is left after the last step")
    made.add_argument("--json", action="store_true", help="a line of JSON for each step")
    return made


def _train(parts: Parts, folder: Path, asked: argparse.Namespace, *, say: bool) -> None:
    plan = read_plan(asked.plan)
    check_plan(plan, parts, int(os.environ.get("WORLD_SIZE", "1")))
    if (asked.data is None) is not asked.synthetic:
        raise UsageError("give either --data or --synthetic")
    if not (folder / "weights").is_dir():
        raise UsageError(f"{folder} has no weights: build it with --checkpoint DIR or --seed N")
    _check(asked)
    device = _device()
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    model_py = _module(folder / "model.py")
    rates = (asked.learning_rate, plan.learning_rate, LEARNING_RATE)
    training = Training(
        Engine(parts, plan, model_py, folder / "weights", device),
        learning_rate=next(rate for rate in rates if rate is not None),
    )
    if asked.resume is not None and not training.resume(asked.resume) and say:
        print(
            f"note: {asked.resume} trained other parts or with another optimiser: its weights are "
            f"taken, its steps are not",
            file=sys.stderr,
        )
    epochs = None
    if asked.data is None:
        text, images = plan.text, plan.images
        batches = synthetic(parts, plan.batch, text=text, images=images, seed=asked.seed)
    else:
        lines = lines_of(asked.data, plan.batch)
        epochs = plan.epochs and -(-plan.epochs * len(lines) // plan.batch)
        batches = batches_of(lines, asked.data, parts, plan.batch, model_py.read_safetensors)
    start = training.steps
    end = start + asked.steps if asked.steps else epochs or start + 1
    if end <= start:
        raise UsageError(f"{asked.resume} has all {end} steps of the plan; --steps N takes more")
    for rows in islice(batches, start, end):
        loss = training.step(rows)
        if not math.isfinite(loss):
            raise UsageError(
                f"step {training.steps}: the loss is {loss}: training diverged, and nothing was "
                f"saved; a smaller --learning-rate may help"
            )
        if say:
            line = {"step": training.steps, "loss": loss}
            print(json.dumps(line) if asked.json else f"step {training.steps}: loss {loss:.6f}")
    if asked.save is not None:
        training.save(asked.save)


def _check(asked: argparse.Namespace) -> None:
    """Raises UsageError for numbers and places that would be found wrong only later."""
    if asked.steps is not None and asked.steps < 1:
        raise UsageError("--steps must be 1 or more")
    rate = asked.learning_rate
    if rate is not None and not 0 < rate < float("inf"):
        raise UsageError(f"--learning-rate {rate:g}: a number above 0 is expected")
    if not 0 <= asked.seed < 2**63:
        raise UsageError(f"--seed {asked.seed}: 0 to 2^63 - 1 is expected")
    if asked.save is not None:
        try:
            asked.save.mkdir(parents=True, exist_ok=True)
            open_to = os.access(asked.save, os.W_OK)
        except OSError as error:
            raise UsageError(f"--save {asked.save}: {error.strerror}") from None
        if not open_to:
            raise UsageError(f"--save {asked.save}: nothing can be written there")


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{path} does not exist: train.py lies in parallel/ of a build")
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    return module


# --------------------------------------------------------------------------------------------------
# The design of this build.
# --------------------------------------------------------------------------------------------------

PARTS = Parts(
    name="flamingo-3b",
    spec="4d3c73008ea8180cd9383e8b9fd0f256498b7bec56aaeb8d14f8f59003916bd4",
    parts={
        "encoder": Part(
            kind="nfnet",
            arguments={
                "depths": (7, 14, 42, 21),
                "widths": (256, 512, 1536, 1536),
                "bottlenecks": (128, 256, 768, 768),
                "group_size": 128,
                "se_hidden": (128, 256, 768, 768),
                "features": 3072,
                "activation": "gelu_tanh",
                "gamma": 1.7015043497085571,
                "alpha": 0.2,
                "frames": 30,
            },
            parameters=435286116,
        ),
        "adapter": Part(
            kind="perceiver_resampler",
            arguments={
                "width": 1536,
                "queries": 64,
                "layers": 6,
                "heads": 16,
                "head_dim": 128,
                "activation": "relu_squared",
                "qk_norm": None,
                "norm_eps": 1e-05,
                "final_norm": False,
                "source_width": 3072,
                "source_tokens": 100,
                "frames": 8,
            },
            parameters=193628160,
        ),
        "fusion": Part(
            kind="gated_cross_attention",
            arguments={
                "every": 1,
                "norm": "layer",
                "norm_eps": 1e-05,
                "activation": "relu_squared",
                "gated": False,
                "qk_norm": None,
                "visual_projection": True,
                "width": 2048,
                "visual_width": 1536,
                "blocks": 24,
                "heads": 16,
                "head_dim": 128,
                "hidden": 8192,
                "gate_width": 1,
                "all_previous": False,
                "image_token": 31999,
            },
            parameters=1211301936,
        ),
        "language": Part(
            kind="decoder",
            arguments={
                "width": 2048,
                "layers": 24,
                "heads": 16,
                "hidden": 8192,
                "vocabulary": 32000,
                "added_vocabulary": 0,
                "norm": "rms",
                "norm_eps": 1e-06,
                "activation": "gelu",
                "gated": False,
                "qkv_bias": False,
                "output_bias": True,
                "mlp_bias": True,
                "kv_heads": 16,
                "head_dim": 128,
                "positions": "transformer_xl",
                "rotary_base": 10000.0,
                "position_rows": 2048,
                "position_offset": 0,
            },
            parameters=1374652416,
        ),
        "head": Part(
            kind="lm",
            arguments={
                "width": 2048,
                "vocabulary": 32000,
                "added_vocabulary": 0,
                "tied": True,
                "scale": None,
            },
            parameters=0,
        ),
    },
    image=(30, 3, 320, 320),
    places=64,
    context=2048,
)

if __name__ == "__main__":
    sys.exit(train_main(PARTS, Path(__file__).resolve().parent.parent))
