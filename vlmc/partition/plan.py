"""The plan: what `vlmc plan` finds, plan.yaml holds, and parallel/train.py runs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmc.components.fields import ZeroStage
from vlmc.ir import Role
from vlmc.runtime.parallel.ruled import encoder_degree

PLAN_VERSION = 1

Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]
Checkpointing = Literal["none", "selective", "full"]
Placement = Literal["stage_0", "own_group", "replicated", "spread"]
"""Where the encoder and the adapter run: on the first stage beside language layers; on stages of
their own; in several copies in a tensor group, each split over fewer of its ranks or whole on one,
which share the images out; cut wherever the chain of blocks balances."""


class Planned(BaseModel):
    """A part of a plan: unknown keys are errors, nothing is coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Holding(Planned):
    """Blocks of one stack that a stage holds."""

    block: str = Field(description="Path of the module, with * for the number in a stack.")
    first: int = Field(ge=0, description="The first of them.")
    last: int = Field(ge=0, description="The last of them, included.")


class PlannedStage(Planned):
    """A pipeline stage (with interleaving: one chunk of it)."""

    group: int = Field(ge=0, description="Place along the pipeline: which ranks hold it.")
    holds: tuple[Holding, ...] = Field(strict=False, description="Its blocks, in their order.")


class Mesh(Planned):
    """Ranks = pipeline x data x tensor, in this order: tensor neighbours are adjacent."""

    pipeline: int = Field(ge=1, description="Pipeline groups.")
    data: int = Field(ge=1, description="Replicas that work on different sequences.")
    tensor: int = Field(ge=1, description="Devices that share each layer.")

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.pipeline * self.data * self.tensor


class Memory(Planned):
    """Peak memory of one device by what it holds, in bytes."""

    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    cache: int = 0
    vision: int = Field(default=0, description="Visual features that are held.")
    buffers: int = Field(default=0, description="Gathered weights and messages on their way.")
    reserve: int = Field(default=0, description="For fragmentation.")

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, name) for name in type(self).model_fields)


CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]


class Collective(Planned):
    """One kind of communication in a step."""

    kind: CollectiveKind
    purpose: str = Field(description="What it is for.")
    group: int = Field(ge=1, description="Ranks that take part.")
    bytes: int = Field(ge=0, description="Bytes of the whole tensors, all calls of a step.")
    seconds: float = Field(ge=0, description="Time of it that nothing hides.")


class Kept(Planned):
    """What a stage keeps for the backward pass."""

    bytes: int = Field(ge=0, description="Of one micro-batch.")
    in_flight: float = Field(
        ge=0,
        description="Micro-batches that it keeps at one time, at most; of a group's chunks, their "
        "mean.",
    )


class Predicted(Planned):
    """What the plan is expected to take."""

    memory: tuple[Memory, ...] = Field(strict=False, description="By pipeline group.")
    kept: tuple[Kept, ...] = Field(
        default=(), strict=False, description="Of `activations`, what is kept; by stage, training."
    )
    compute_seconds: float = Field(
        ge=0, description="The busiest device at work, in one step; when serving, on all prompts."
    )
    token_compute_seconds: float | None = Field(
        default=None, ge=0, description="When serving, at work on all tokens of answers."
    )
    collectives: tuple[Collective, ...] = Field(default=(), strict=False)
    bubble_seconds: float = Field(default=0, ge=0, description="Waiting in the pipeline.")
    token_bubble_seconds: float | None = Field(
        default=None, ge=0, description="When serving, waiting in the pipeline for tokens."
    )
    step_seconds: float = Field(
        ge=0, description="One training step, or all answers of a batch: the sum of these parts."
    )
    mfu: float | None = Field(default=None, description="Model FLOPs utilisation, a share of 1.")
    first_token_seconds: float | None = Field(default=None)
    token_seconds: float | None = Field(default=None)
    images_per_second: float | None = Field(default=None)
    largest_batch: int | None = Field(default=None)
    cost_per_million_tokens: float | None = Field(default=None)


class ParallelPlan(Planned):
    """A whole plan."""

    version: Literal[1] = 1
    design: str
    spec: str = Field(description="sha256 of the resolved spec that it was made for.")
    mode: Literal["train", "serve"]
    hardware: str
    count: int = Field(ge=1)
    per_node: int = Field(ge=1)
    trained: tuple[Role, ...] = Field(default=(), strict=False)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimiser: str = "adamw"
    learning_rate: float | None = Field(
        default=None, gt=0, description="Of the stage of training, if the spec has stages."
    )
    epochs: int | None = Field(default=None, ge=1, description="Passes over the data, likewise.")
    mesh: Mesh
    encoder: Mesh | None = Field(
        default=None, description="Degrees of encoder and adapter where they differ."
    )
    placement: Placement = "spread"
    sequence_parallel: bool = False
    zero: ZeroStage = Field(
        default=0,
        description="What data parallelism shards (Rajbhandari et al., 2020): 1 the optimiser's "
        "state, 2 gradients, too, 3 weights, too.",
    )
    batch: int = Field(ge=1, description="Sequences of a step, over all devices.")
    micro_batch: int = Field(ge=1, description="Sequences of a micro-batch.")
    text: int = Field(
        ge=1,
        description="Tokens of a sequence's text: prompt and "
        "answer, with those that stand for images in cross-attention; visual tokens come on top.",
    )
    images: int = Field(ge=0, description="Images of a sequence.")
    schedule: Schedule = "1f1b"
    chunks: int = Field(default=1, ge=1, description="Stages that each rank holds (interleaved).")
    checkpointing: dict[str, Checkpointing] = Field(
        default_factory=dict, description="By block; a block that is not named keeps everything."
    )
    stages: tuple[PlannedStage, ...] = Field(strict=False)
    predicted: Predicted | None = None
    bound_seconds: float | None = Field(
        default=None, description="No plan is faster than this, by proof."
    )

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step in each replica."""
        return self.batch // (self.mesh.data * self.micro_batch)

    @property
    def encoder_tensor(self) -> int:
        """Devices over which encoder and adapter are split."""
        own = None if self.encoder is None else self.encoder.tensor
        return encoder_degree(self.placement, own, self.mesh.tensor)
