"""What each block of a recorded run costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from vlmc.analysis.polynomial import ZERO, Polynomial
from vlmc.analysis.report import Operator, Phase
from vlmc.analysis.run import Kept, Runs, Trial
from vlmc.analysis.segments import Segments
from vlmc.analysis.spans import Where
from vlmc.analysis.splits import ROWS, is_split
from vlmc.analysis.trace import Allocated, Call, Freed
from vlmc.components.adapter.perceiver_resampler.module import ResamplerBlock
from vlmc.components.shared.attention import Attention
from vlmc.components.shared.relative import RelativeAttention
from vlmc.ir import Arch

_Kind = tuple[str, Phase, bool, bool]
"""An operator's name and phase, whether it runs on matrix units, whether it is split."""


TABLE = "_bias.table.weight"
"""How the path of a table of distances ends, behind its stack's side of the model."""
AGAIN: dict[Kept, Phase] = {"selective": "again_selective", "full": "again_full"}


class Costs:
    """Operators, flows and shares of each block."""

    def __init__(self, runs: Mapping[Kept, Runs], segments: Segments, trial: Trial) -> None:
        self.runs, self.segments, self.trial = runs["none"], segments, trial
        self._splits: dict[str, bool] = {}
        self._passing = passing(self.runs)
        self._made_backward = {
            event.number: index
            for index, event in enumerate(self.runs.first.events)
            if isinstance(event, Allocated) and event.during == "backward"
        }
        self._by: dict[Where, dict[_Kind, list[tuple[tuple[int, ...], ...]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._reduced: Counter[tuple[Where, Phase]] = Counter()
        self._phases = phases(self.runs)
        for index, phase in self._phases.items():
            self._add(self.runs, index, phase)
        for kept, phase in AGAIN.items():
            for index, event in enumerate(runs[kept].first.events):
                if isinstance(event, Call) and event.during == "recompute":
                    self._add(runs[kept], index, phase)

    def _add(self, runs: Runs, index: int, phase: Phase) -> None:
        """Counts a call to its block."""
        event: Any = runs.first.events[index]
        where = self.segments(event.path)
        key = (event.packet, phase, event.matmul, self._is_split(event.path))
        self._by[where][key].append(tuple(one.figures[index] for one in runs.records))
        ends = event.path.rpartition(".")[2] in ROWS
        self._reduced[where, phase] += event.matmul and ends

    def _is_split(self, path: str) -> bool:
        if path not in self._splits:
            self._splits[path] = is_split(self.trial.model, path)
        return self._splits[path]

    def operators(self, where: Where) -> tuple[Operator, ...]:
        """Of a block, each kind once a phase."""
        return tuple(
            Operator(
                name=name,
                phase=phase,
                calls=len(figures),
                flops=self._sum(figures, 0),
                bytes=self._sum(figures, 1),
                matmul=matmul,
                split=split,
            )
            for (name, phase, matmul, split), figures in sorted(self._by[where].items())
        )

    def all_reduces_again(self, where: Where) -> tuple[int, int]:
        """Sums over a tensor group that selective and full checkpointing do again."""
        selective, full = (self._reduced[where, phase] for phase in AGAIN.values())
        return selective, full

    def _sum(self, figures: list[tuple[tuple[int, ...], ...]], which: int) -> Polynomial:
        """Of calls, each with its figures at each point of the fit."""
        return self.trial.fit(
            [sum(one[which] for one in ones) for ones in zip(*figures, strict=True)]
        )

    def split_shares(self, where: Where) -> tuple[Fraction, Fraction]:
        """Of what the block keeps for its backward pass, and of all that it makes in its forward
        pass, the shares that are divided."""
        kept, made = [0, 0], [0, 0]
        for index, event in enumerate(self.runs.first.events):
            if not isinstance(event, Allocated) or event.during != "forward":
                continue
            if self.segments(event.path) == where:
                size, split = self.runs.first.figures[index][0], self._is_split(event.path)
                made[split] += size
                kept[split] += 0 if event.number in self._passing else size
        return _share(kept), _share(made)

    def late(self, where: Where) -> tuple[Polynomial, Fraction]:
        """Bytes of the gradients that those of its weights are made of, each once, and the share of
        them that is divided."""
        made, gradients = self._made_backward, self.runs.first.gradients
        found: set[int] = set()
        passing: set[int] = set()
        for index, phase in self._phases.items():
            event: Any = self.runs.first.events[index]
            # A norm's backward pass is one call for both.
            weighs = phase == "backward_weight" or not gradients.isdisjoint(event.makes)
            if weighs and self.segments(event.path) == where:
                found.update(number for number in event.takes if number in made)
                passing.update(event.makes if phase == "backward_weight" else ())
        found -= passing
        figures = [tuple(r.figures[made[number]] for r in self.runs.records) for number in found]
        sizes = [0, 0]
        for number in found:
            event = self.runs.first.events[made[number]]
            sizes[self._is_split(event.path)] += self.runs.first.figures[made[number]][0]
        return self._sum(figures, 0) if figures else ZERO, _share(sizes)

    def flow(self, where: Where) -> tuple[Polynomial, Polynomial]:
        """Bytes of activations that enter and leave a block."""
        name, number = where
        if name.endswith(".*"):
            path = f"{name[:-1]}{number}"
            return self._flow(path, 0), self._flow(path, 1)
        role, _, part = name.partition(".")
        whole = self._flow(role, 0), self._flow(role, 1)
        if role == "fusion":
            return self._flow("visual_projection", 0), self._flow("visual_projection", 1)
        if not part:
            return whole[0], ZERO if role == "head" else whole[1]
        own = [stack for stack in self.trial.stacks if stack.startswith(f"{role}.")]
        before = own[-1] if part == "end" else own[0]
        after = own[0] if part == "begin" else own[-1]
        enters = self._flow("adapter", 1) if role == "language" else whole[0]
        if part != "begin":
            enters = self._last_flow(before)
        if part != "end":
            return enters, self._flow(f"{after}.0", 0)
        # The last norm of a language model changes no shape.
        return enters, enters if role == "language" else whole[1]

    def _last_flow(self, stack: str) -> Polynomial:
        """What leaves the last block of a stack that runs; nothing where none does."""
        ran = [one for one in self.runs.first.flows if one.rpartition(".")[0] == stack]
        if not ran:
            return ZERO
        return self._flow(max(ran, key=lambda one: int(one.rpartition(".")[2])), 1)

    def sources(self, where: Where) -> tuple[Polynomial, Polynomial]:
        """Bytes of what a block makes keys and values of beside its own input, where gradients pass
        through it, and of what it reads from further up the chain."""
        paths = [one for one in self.runs.first.sources if self.segments(one) == where]
        if not paths:
            return ZERO, ZERO
        records = self.runs.records
        read, turned = (
            self.trial.fit([sum(one.sources[path][which] for path in paths) for one in records])
            for which in (0, 1)
        )
        block = self.trial.model.get_submodule(f"{where[0][:-1]}{where[1]}")
        # Latents are read beside the features, but are what the block before has made.
        return turned, read - self.flow(where)[1] if isinstance(block, ResamplerBlock) else read

    def _flow(self, path: str, which: int) -> Polynomial:
        records = self.runs.records
        return self.trial.fit([r.flows.get(path, (0, 0))[which] for r in records])


def _share(sizes: list[int]) -> Fraction:
    """Of the second of two."""
    return Fraction(sizes[1], sum(sizes)) if sum(sizes) else Fraction(0)


def passing(runs: Runs) -> frozenset[int]:
    """Numbers of the tensors that are gone before the backward pass."""
    found: set[int] = set()
    for event in runs.first.events:
        if isinstance(event, Freed):
            found.add(event.number)
        elif event.during != "forward":
            break
    return frozenset(found)


def phases(runs: Runs) -> dict[int, Phase]:
    """Of each call by its place among the events. A call of the backward pass belongs to weights if
    gradients of its module's parameters alone come of it."""
    found: dict[int, Phase] = {}
    wanted: set[int] = set()
    own: dict[str, set[int]] = defaultdict(set)
    events = runs.first.events
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if not isinstance(event, Call):
            continue
        if event.during != "backward":
            found[index] = "forward"
            continue
        made = [one for one in event.makes if one > 0]
        alone = bool(made) and all(
            one in runs.first.gradients or (one in own[event.path] and one not in wanted)
            for one in made
        )
        if alone or event.weight_half:
            found[index] = "backward_weight"
            own[event.path].update(event.takes)
        else:
            found[index] = "backward_input"
            wanted.update(event.takes)
    return found


def distances(model: Any, name: str) -> tuple[int, int]:
    """Shape of the table of distances that a stack reads beside its own parameters; (0, 0) where
    there is none."""
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    table = parameters.get(name.removesuffix("_layers.*") + TABLE)
    return (0, 0) if table is None else (table.shape[0], table.shape[1])


def embedding(model: Any, name: str, arch: Arch) -> tuple[nn.Parameter, ...]:
    """Parameters of the language model's embedding that a block reads beside its own: a tied
    head's, or those of the words with which a decoder behind an encoder begins."""
    tied = name == "head" and arch.node("head").arguments.get("tied")
    if not tied and name != "language.between":
        return ()
    of = ("language.embedding.", "language.added_embedding.")
    return tuple(one for path, one in model.named_parameters() if f"{path}.".startswith(of))


def cache(model: Any, where: Where, arch: Arch) -> Polynomial:
    """Numbers that a block keeps of keys and values while it serves: of the sequence's tokens in a
    decoder's layers (behind an encoder, of the answer's), of what is read from outside in
    cross-attention."""
    name, number = where
    generating = ("language.layers.*", "language.decoder_layers.*", "gated_blocks.*")
    if arch.serving == "single_pass" or name not in generating:
        return ZERO
    batch, text = Polynomial.symbol("batch"), Polynomial.symbol("text")
    images, tokens = Polynomial.symbol("images"), Polynomial.symbol("tokens")
    sequence = text + images * tokens
    own, outside = sequence, images * arch.tokens.per_image
    if arch.serving == "cross_attention":
        own = text
    elif arch.serving == "encoder_decoder":
        own = Polynomial.symbol("answer")
        outside = sequence - own
    found = ZERO
    for path, module in model.get_submodule(f"{name[:-1]}{number}").named_modules():
        if isinstance(module, (Attention, RelativeAttention)):
            each = module.key.out_features + module.value.out_features
            crossing = path == "cross" or name == "gated_blocks.*"
            found = found + batch * (outside if crossing else own) * each
    return found
