"""A block's work at the sizes of a micro-batch: calls, bytes kept and bytes handed on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vlmc.analysis.report import Block, Operator, Phase
from vlmc.hardware.efficiency import Kind

_FUNCTIONS = (
    "gelu", "silu", "sigmoid", "tanh", "exp", "erf", "sin", "cos", "pow", "sqrt", "softmax", "norm",
    "sum", "mean",
)  # fmt: skip
"""What an operator is called that computes more than it moves: functions and reductions."""

_LINEAR = ("aten.mm", "aten.addmm")
"""Products of which one side are weights."""


def kind_of(operator: Operator) -> Kind:
    """By which curve of a device an operator is timed."""
    if operator.matmul:
        if "scaled_dot_product" not in operator.name:
            return "linear" if operator.name in _LINEAR else "matmul"
        return "attention_backward" if "backward" in operator.name else "attention"
    if operator.name == "aten.cat":
        return "cache"
    return "function" if any(word in operator.name for word in _FUNCTIONS) else "elementwise"


Moments = tuple[tuple[float, float], ...]
"""Bytes, and the share of a block's gradients that is there, at the highest moments of its backward
pass."""


@dataclass(frozen=True, slots=True)
class Calls:
    phase: Phase
    count: int
    flops: float
    bytes: float
    kind: Kind
    split: bool


@dataclass(frozen=True, slots=True)
class Work:
    """A block's polynomials at the sizes of a micro-batch."""

    calls: tuple[Calls, ...]
    saved: tuple[float, float, float]
    late: float
    input: float
    output: float
    source: float
    looks: float
    peak_forward: float
    climb: Moments
    cache: float


def work_of(block: Block, sizes: dict[str, int], whole_text: int) -> Work:
    """The cache is that of whole sequences, however many of their tokens are worked on."""
    return Work(
        calls=tuple(
            Calls(
                one.phase,
                max(1, one.calls),
                float(one.flops(**sizes)),
                float(one.bytes(**sizes)),
                kind_of(one),
                one.split,
            )
            for one in block.operators
        ),
        saved=(
            max(0.0, float(block.saved.none(**sizes))),
            max(0.0, float(block.saved.selective(**sizes))),
            max(0.0, float(block.saved.full(**sizes))),
        ),
        late=max(0.0, float(block.saved.late(**sizes))),
        input=float(block.input(**sizes)),
        output=float(block.output(**sizes)),
        source=float(block.source(**sizes)),
        looks=float(block.looks(**sizes)),
        peak_forward=float(block.peak_forward(**sizes)),
        climb=block.climb(**sizes),
        cache=float(block.cache(**{**sizes, "text": whole_text})),
    )


class Sums(NamedTuple):
    """Of activations and their gradients over a tensor group: bytes, or seconds."""

    forward: float
    backward: float
    looked: float
    """In the backward pass, too: of what is read beside the input."""


def summed(block: Block, work: Work) -> Sums:
    """Bytes of whole tensors. A split head is given whole sequences and gives no sums, but
    gradients of what it was given."""
    if block.role == "head":
        return Sums(0.0, work.input, 0.0)
    sums = block.all_reduces * work.output
    return Sums(sums, sums, work.source)


def logits(block: Block, work: Work) -> float:
    """Bytes of the logits that a split head puts together."""
    if block.role != "head" or not block.split_parameters:
        return 0.0
    words = block.tensor_limits[0]
    return work.input * words * words / block.split_parameters


def gathered(block: Block, work: Work) -> tuple[float, float]:
    """Bytes that a block puts together of sequences that are shared out, forward and backward:
    gradients of embeddings, what a decoder looks at, what the head reads."""
    if block.role == "head":
        return work.input, 0.0
    if block.role == "language" and block.name.endswith(".between"):
        return work.input, work.output if block.trained else 0.0
    return 0.0, work.output if block.name == "language.begin" else 0.0


def kept_bytes(
    block: Block, work: Work, part: float, whole: int
) -> tuple[float, float, float, float, Moments]:
    """Bytes that are saved (without checkpointing, selective, full), the forward pass's peak and
    the backward pass's moments over what is saved, of a device with `part` of what is split. Where
    tokens are shared out, projections still read whole sequences: those that are trained keep them,
    as checkpointing does for attention that is computed again, and one is there at any moment."""
    trained = block.all_reduces if block.trained else 0
    whole_kept = (1 - float(block.saved.split)) * work.saved[0]
    whole_made = 1 - float(block.split_made)

    def held(size: float, undivided: float, sequences: int) -> float:
        """Of `size` bytes; tensor parallelism leaves so many `undivided`."""
        undivided = min(size, undivided)
        read = min(undivided, sequences * work.output)
        return (size - undivided) * part + undivided / whole + read * (1 - 1 / whole)

    over = max(0.0, work.peak_forward - work.saved[0])
    return (
        held(work.saved[0], whole_kept, trained),
        held(work.saved[1], whole_kept, max(trained, block.all_reduces - 1)),
        work.saved[2] / whole,
        held(over, whole_made * over, 1),
        tuple((held(size, whole_made * size, 1), made) for size, made in work.climb),
    )
