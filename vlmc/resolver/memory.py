"""A lower bound of the memory that a design needs, from its types alone."""

from __future__ import annotations

from dataclasses import dataclass

from vlmc.components.contract import Parameters
from vlmc.hardware import BYTES
from vlmc.resolver.flow import Flow
from vlmc.spec.document import PARTS, Part

TRAINED_BYTES = 16
"""Weight, gradient and the two Adam moments of a trained parameter in mixed precision, master copy
included (Rajbhandari et al., 2020, section 3.1)."""


@dataclass(frozen=True, slots=True)
class MemoryBound:
    """Bytes by what they hold."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.activations

    def __str__(self) -> str:
        return (
            f"{self.weights / 1e9:,.1f} GB weights + {self.cache / 1e9:,.1f} GB cache + "
            f"{self.activations / 1e9:,.1f} GB activations = {self.total / 1e9:,.1f} GB"
        )


def trained_parts(flow: Flow) -> list[tuple[Part, ...]]:
    """The parts that training optimises: those of each stage, or all that are not frozen. Every
    part must be known."""
    stages = () if flow.training is None else flow.training.stages
    if stages:
        return [stage.train for stage in stages]
    return [tuple(part for part in PARTS if not getattr(flow, part).frozen)]


def lower_bound(flow: Flow) -> MemoryBound | None:
    """The least that the target's workload takes; None where the design is incomplete.

    Weights count in their format (16 bytes for each trained parameter when training, in the stage
    that trains most), the cache for every sequence of the batch at its full length, activations as
    one layer's input; visual tokens that are attended to from outside the sequence beside them.
    """
    encoder, adapter, fusion = flow.encoder, flow.adapter, flow.fusion
    language, head, target = flow.language, flow.head, flow.target
    seen, visual = flow.seen, flow.visual
    if encoder is None or adapter is None or fusion is None or language is None:
        return None
    if head is None or target is None or seen is None or visual is None:
        return None
    if language.architecture not in head.architectures:
        return None
    if language.architecture not in fusion.architectures:
        return None
    counts: dict[Part, Parameters] = {
        "encoder": encoder.parameters(),
        "adapter": adapter.parameters(seen, language),
        "fusion": fusion.parameters(visual, language),
        "language": language.parameters(),
        "head": head.parameters(language),
    }
    workload = target.workload
    batch = 1 if workload.batch == "auto" else workload.batch
    training = workload.mode == "train"
    weights = max(
        sum(
            sum(by_child.values())
            * (TRAINED_BYTES if part in trained else BYTES[target.precision_of(part)])
            for part, by_child in counts.items()
        )
        for trained in (trained_parts(flow) if training else [()])
    )
    text = flow.budget.text if workload.prompt is None else workload.prompt
    if not training and workload.prompt is not None:
        text += workload.generate
    length = text + flow.budget.images * fusion.in_sequence(visual)
    number = BYTES[target.precision_of("language")]
    number = max(number, 2.0)  # caches and activations stay at 16 bits where weights are smaller
    cache = 0.0
    if not training:
        cache = batch * length * language.cache_elements_per_token() * number
    activations = batch * language.width * number * (length if training else 1)
    # Cross-attention reads the visual tokens again at every step, or keeps what it made of them.
    held = batch * flow.budget.images * fusion.memory(visual) * visual.width
    kept = held * max(BYTES[target.precision_of("adapter")], 2.0)
    if training:
        activations += kept
    else:
        cache += kept
    return MemoryBound(int(weights), int(cache), int(activations))
