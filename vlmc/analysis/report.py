"""What was read off the graphs of a design."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from vlmc.analysis.polynomial import ZERO, Polynomial
from vlmc.ir import Role

Mode = Literal["train", "prefill", "decode"]
Phase = Literal["forward", "backward_input", "backward_weight", "again_selective", "again_full"]
"""backward_input: gradients of activations; backward_weight: gradients of parameters;
again_selective and again_full: what the backward pass computes again of the forward pass with that
checkpointing, which ends with the last tensor that the backward pass reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of one micro-batch."""

    batch: int
    """Sequences."""
    text: int
    """Words of a sequence, without what images take of it. When decoding: those in the cache, the
    newest included. An encoder-decoder is asked in training for as many words as it reads."""
    images: int = 1
    """Images of each sequence."""
    tokens: int = 1
    """Positions of the sequence that an image takes (`GraphReport.tokens` of the design)."""
    answer: int = 0
    """Of `text`, words of the answer, when an encoder-decoder serves: its encoder never reads them,
    its decoder reads nothing else."""


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest of several polynomials: which of them it is depends on the sizes."""

    among: tuple[Polynomial, ...] = ()

    def __call__(self, **sizes: int) -> Fraction:
        """The value at `sizes`, 0 at least. Raises KeyError for a symbol that is not among them."""
        return max((one(**sizes) for one in self.among), default=Fraction(0))


NOTHING = Largest()


@dataclass(frozen=True, slots=True)
class Climb:
    """The highest moments of a block's backward pass: gradients of its parameters come one by one
    while what it has saved goes."""

    moments: tuple[tuple[Polynomial, Fraction], ...] = ()
    """Bytes over the level at its start without those gradients, and the share of them that is
    there by then."""

    def __call__(self, **sizes: int) -> tuple[tuple[float, float], ...]:
        """Those at `sizes` that are not below another, the largest share first."""
        found: list[tuple[float, float]] = []
        high = 0.0
        known = [(share, max(0.0, float(one(**sizes)))) for one, share in self.moments]
        for share, size in sorted(known, reverse=True):
            if not found or size > high:
                found.append((size, float(share)))
                high = size
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One kind of operator within a block, all its calls of one phase together."""

    name: str
    """As PyTorch's dispatcher calls it: aten.addmm."""
    phase: Phase
    calls: int
    flops: Polynomial
    """By the formulas of torch.utils.flop_counter."""
    bytes: Polynomial
    """Read plus written, each tensor once a call. Bytes."""
    matmul: bool = False
    """Whether it runs on the matrix units."""
    split: bool = True
    """Whether tensor parallelism divides its work by the degree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What the forward pass of a block keeps for its backward pass, in bytes, outside of what its
    parameters are: without checkpointing; with the block's input alone (full checkpointing); with
    attention's insides left out (selective, Korthikanti et al., 2022, section 5)."""

    none: Polynomial = ZERO
    selective: Polynomial = ZERO
    full: Polynomial = ZERO
    split: Fraction = Fraction(1)
    """Share of `none` that tensor parallelism divides by the degree (the rest is whole on each
    device, unless sequence parallelism divides it, too)."""
    late: Polynomial = ZERO
    """Gradients of activations that those of its weights are made of: they are kept, too, where the
    weights' turn comes later."""
    late_split: Fraction = Fraction(1)
    """As `split`, of `late`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A distinct block and how often it stands in the design."""

    role: Role
    name: str
    """Path of the module, with * for the number in a stack: `language.layers.*`. What stands
    before, between and after a part's stacks is its `.begin`, `.between`, `.end`; a part without
    stacks is one block, `adapter` or `head`; the fusion's own beside its stack is `fusion`. Blocks
    of one stack that differ (the first, whose input may need no gradient) have the same name."""
    count: int
    parameters: int
    """Of one block."""
    trained: bool
    """Whether its parameters take gradients."""
    reached: bool
    """Whether gradients pass through it: something upstream of it, or it itself, is trained."""
    tensor_limits: tuple[int, ...]
    """A degree of tensor parallelism must divide each of them; (1,) where it cannot be split."""
    split_parameters: int
    """Of one block's parameters, those that tensor parallelism divides."""
    operators: tuple[Operator, ...]
    saved: Saved
    input: Polynomial
    """Bytes of the activations that enter it."""
    output: Polynomial
    """Bytes of the activations that leave it: what a pipeline sends on."""
    peak_forward: Largest
    """Bytes over the level at its start, at most, while it runs forward, `saved` and output
    included."""
    climb: Climb
    """Its backward pass, over the level before it (where `saved` is held)."""
    split_made: Fraction = Fraction(1)
    """Share of what its forward pass makes that tensor parallelism divides, kept or not: that of
    the peaks over `saved`."""
    all_reduces: int = 2
    """All-reduces of `output`'s size that tensor parallelism needs in its forward pass; as many in
    the backward pass."""
    all_reduces_again: tuple[int, int] = (0, 0)
    """Of those in the forward pass, those that selective and full checkpointing do again."""
    source: Polynomial = ZERO
    """Bytes of what it makes keys and values of where its queries are made of something else, if
    gradients pass through it: tensor parallelism sums those up, too."""
    looks: Polynomial = ZERO
    """Bytes of activations from further up that it reads beside its input (features, visual tokens,
    an encoder's words): a pipeline carries them on as far as the last block that reads them."""
    tensors: tuple[int, ...] = ()
    """Numbers in each of its parameters, in their order."""
    rows: tuple[int, ...] = ()
    """First dimension of each of them, 0 of a single number: replicas shard whole rows."""
    split_along: tuple[int, ...] = ()
    """The dimension of each of them that tensor parallelism divides; -1 where it divides none."""
    seeing: tuple[int, ...] = ()
    """Places in `tensors` of those that see each token by itself and that no degree divides (norms,
    gates): where tokens are shared out, each device has a part of their gradients."""
    lent: tuple[int, ...] = ()
    """Places in `tensors` of tables of distances: a stack behind it reads them, it does not."""
    distances: tuple[int, int] = (0, 0)
    """Shape of the table of distances, a column for each head, that all blocks of its stack read:
    each stage of a pipeline that has some of them has a copy."""
    embedding: tuple[int, ...] = ()
    """Numbers in each parameter of the language model's embedding that it reads, too (a tied head,
    the start of a decoder): on another stage of a pipeline it has a copy of them."""
    embedding_rows: tuple[int, ...] = ()
    """As `rows`, of those."""
    cache: Polynomial = ZERO
    """Bytes of the key/value cache that it holds when it serves, for all tokens of `Sizes`."""

    @property
    def stepped(self) -> bool:
        """Whether the optimiser changes its parameters: those that are trained where nothing reads
        what they make (an encoder's layers behind the one that is read) never get gradients."""
        return self.trained and self.reached

    def flops(self, phase: Phase) -> Polynomial:
        """FLOPs of one block."""
        return sum((one.flops for one in self.operators if one.phase == phase), ZERO)

    def moved(self, phase: Phase) -> Polynomial:
        """Bytes that one block reads and writes."""
        return sum((one.bytes for one in self.operators if one.phase == phase), ZERO)


@dataclass(frozen=True, slots=True)
class Level:
    """How memory moves during a visit, in bytes."""

    change: Polynomial
    """Of activations, from its start to the start of the next."""
    tops: tuple[tuple[Polynomial, int], ...]
    """The highest moments: activations over those at its start, and gradients of parameters that
    it has made by then, if they have the activations' format."""

    @property
    def peak(self) -> Largest:
        """Activations over those at its start, at most."""
        return Largest(tuple(one for one, _ in self.tops))


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A stretch of a training step that belongs to one block."""

    block: int
    forward: bool
    gradients: int
    """Bytes of gradients of parameters that it leaves, if they have the activations' format."""
    none: Level
    selective: Level
    full: Level
    """With that checkpointing of all blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphReport:
    """A design's blocks in the order in which data meets them. Blocks of unlike kinds that take
    turns (gated blocks between layers) stand in `order`."""

    design: str
    mode: Mode
    trained: tuple[Role, ...]
    number_bytes: int
    """Bytes of an activation's number."""
    blocks: tuple[Block, ...]
    order: tuple[int, ...]
    """Every block of the whole depth, by its place in `blocks`, as it runs."""
    loss_peak: Largest = NOTHING
    """Bytes over the level after the last block, at most, while logits become a loss and its
    gradient."""

    tokens: int = 1
    """What `tokens` of `Sizes` is for this design, unless its number of regions varies."""
    inputs: Polynomial = ZERO
    """Bytes of a training step's inputs: pixels, words, labels."""
    visits: tuple[Visit, ...] = ()
    """Distinct stretches of a training step."""
    timeline: tuple[int, ...] = ()
    """A whole training step, by places in `visits`."""

    @property
    def parameters(self) -> int:
        """Parameters of the whole design."""
        return sum(block.count * block.parameters for block in self.blocks)
