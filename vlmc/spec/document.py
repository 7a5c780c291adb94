"""The document: what one spec file says, typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from vlmc.components.contract import (
    AdapterSpec,
    Described,
    EncoderSpec,
    FusionSpec,
    HeadSpec,
    LanguageSpec,
)
from vlmc.components.fields import Count, Positive, ZeroStage
from vlmc.ir import Role
from vlmc.spec.source import SourceMap

SCHEMA_VERSION = 1

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8", "int4"]
ArtifactName = Literal["model", "compile", "onnx", "aoti", "plan"]
Part = Literal["encoder", "adapter", "fusion", "language", "head"]
PARTS: tuple[Part, ...] = ("encoder", "adapter", "fusion", "language", "head")
Auto = Literal["auto"]
OptimiserName = Literal["adamw", "sgd"]
ScheduleName = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]
CheckpointingName = Literal["none", "selective", "full"]
Above = Annotated[float, Field(gt=0, le=1e9)]
"""A rate, a price or a time: nothing for nothing is no offer."""


class TokenBudget(Described):
    """What one prompt may hold. `auto` is the most that the context holds; `vlmc plan` says how
    much of that the target's memory holds, too."""

    images: Count | Auto = Field(
        default=1, description="Images (or videos) in one prompt, at most; `auto`: the most."
    )
    text: Positive | Auto = Field(
        default=512,
        description="Text tokens in one prompt and its answer, beside visual tokens; `auto`: the "
        "most.",
    )


class Workload(Described):
    """What the target will be asked to do."""

    mode: Literal["serve", "train"] = Field(
        default="serve", description="serve: generate answers; train: optimise the free parts."
    )
    batch: Positive | Auto = Field(
        default=1,
        description="Sequences at once; `auto`: as many as can be served, which `vlmc plan` finds.",
    )
    prompt: Positive | None = Field(
        default=None,
        description="Text tokens of a prompt; what `generate` leaves of the budget's "
        "text by default.",
    )
    generate: Count = Field(default=128, description="Tokens generated for each sequence.")
    latency_ms: Above | None = Field(
        default=None, description="Milliseconds that a generated token may take, at most."
    )
    first_token_ms: Above | None = Field(
        default=None,
        description="Milliseconds until the last sequence has its first token (or its answer, "
        "where that is no text), at most.",
    )


class Degrees(Described):
    """Over how many devices a part is split; `auto` leaves it to the planner."""

    tensor: Positive | Auto = Field(
        default="auto", description="Devices that share each layer (tensor parallelism)."
    )
    pipeline: Positive | Auto = Field(
        default="auto", description="Devices that hold consecutive layers (pipeline parallelism)."
    )
    data: Positive | Auto = Field(
        default="auto", description="Replicas that work on different sequences."
    )


class Parallel(Degrees):
    """Degrees of parallelism, for the whole model or by part, and how a step is run on them."""

    encoder: Degrees | None = Field(
        default=None,
        description="Degrees of encoder and adapter alone. `tensor` divides the language model's: "
        "where it is less, a tensor group holds several copies, which share the images out; each "
        "is a replica (`data`).",
    )
    language: Degrees | None = Field(
        default=None,
        description="Degrees of the language model alone; what is not given here is as for the "
        "whole model.",
    )
    micro_batch: Positive | Auto = Field(
        default="auto", description="Sequences that a replica works on at a time."
    )
    schedule: ScheduleName | Auto = Field(
        default="auto",
        description="In which order pipeline groups work on micro-batches, in training.",
    )
    zero: ZeroStage | Auto = Field(
        default="auto",
        description="What replicas share out in training: 0 nothing, 1 the optimiser's state, "
        "2 gradients, too, 3 weights, too.",
    )
    chunks: Positive | Auto = Field(
        default="auto",
        description="Stages that each pipeline group holds; more than one with the schedule "
        "`interleaved` alone.",
    )
    checkpointing: CheckpointingName | Auto | dict[str, CheckpointingName | Auto] = Field(
        default="auto",
        description="What blocks compute again in the backward pass: `none` nothing, `selective` "
        "attention's scores, `full` whole blocks. For all stacks of blocks, or by stack as "
        "plan.yaml names them: `{language.layers.*: full}`; others are planned.",
    )

    @property
    def words(self) -> Degrees:
        """Degrees of the language model: its own, and the whole model's where it has none."""
        if self.language is None:
            return self
        unset = [name for name, degree in self.language if degree == "auto"]
        return self.language.model_copy(update={name: getattr(self, name) for name in unset})

    @property
    def apart(self) -> Degrees | None:
        """Degrees of the encoder, where they are given apart from the language model's: its own, or
        the tensor degree that remains for it."""
        remaining = None if self.language is None else Degrees(tensor=self.tensor)
        return self.encoder or remaining


class Precision(Described):
    """Number formats by part."""

    default: PrecisionName = Field(default="bf16", description="Format of every part not named.")
    encoder: PrecisionName | None = Field(default=None, description="Format of the encoder.")
    adapter: PrecisionName | None = Field(default=None, description="Format of the adapter.")
    fusion: PrecisionName | None = Field(default=None, description="Format of the fusion.")
    language: PrecisionName | None = Field(
        default=None, description="Format of the language model."
    )
    head: PrecisionName | None = Field(default=None, description="Format of the head.")

    def of(self, part: Part) -> PrecisionName:
        """The format of `part`."""
        return getattr(self, part) or self.default


class Target(Described):
    """The machine that the design is for."""

    hardware: str = Field(
        description="Name of a device, or path of a device file (`.yaml`, as `vlmc bench "
        "--calibrate` writes it) relative to the working directory."
    )
    count: Positive | Auto = Field(
        default=1, description="Devices; `auto`: the fewest that do, which `vlmc plan` finds."
    )
    per_node: Positive | None = Field(
        default=None, description="Devices of a node; by default as many as the device's usual."
    )
    network_gbps: Above | None = Field(
        default=None,
        description="What one device moves to another node, one way, in 10^9 bytes a second; "
        "by default what is usual for the device.",
    )
    price: Above | None = Field(
        default=None, description="What one device costs for an hour, in any currency."
    )
    precision: PrecisionName | Precision = Field(
        default="bf16",
        description="Number format of the weights on the target, for everything or by part: "
        "what the rules on devices and memory assume. A run computes in its own `--dtype`.",
    )
    workload: Workload = Field(
        default=Workload.model_construct(), description="What it will be asked to do."
    )
    parallel: Parallel = Field(
        default=Parallel.model_construct(),
        description="Degrees of parallelism; what is not given is planned.",
    )

    def precision_of(self, part: Part) -> PrecisionName:
        """The number format of `part`."""
        if isinstance(self.precision, Precision):
            return self.precision.of(part)
        return self.precision


class Stage(Described):
    """One stage of training."""

    name: str = Field(description="What the stage is called.")
    train: Annotated[tuple[Part, ...], Field(strict=False, min_length=1)] = Field(
        description="Parts that the stage optimises, none of them `frozen` in the design; every "
        "other part is frozen in it."
    )
    objective: Literal["next_token"] = Field(default="next_token", description="What is minimised.")
    lr: float = Field(gt=0, le=1, description="Peak learning rate.")
    batch: Positive = Field(default=256, description="Sequences for each optimiser step.")
    epochs: Positive = Field(default=1, description="Passes over the data.")


class Training(Described):
    """How the design is trained."""

    optimiser: OptimiserName = Field(
        default="adamw",
        description="What turns gradients into steps: `adamw` keeps two moments of each "
        "parameter, `sgd` nothing.",
    )
    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = Field(
        default=(), description="Stages in their order."
    )


class Outputs(Described):
    """What a build makes."""

    artifacts: Annotated[tuple[ArtifactName, ...], Field(strict=False)] = Field(
        default=("model", "onnx"),
        json_schema_extra={"uniqueItems": True},
        description="What a build makes: `model` (texts and weights, always made), `compile` "
        "(graphs for torch.compile), `onnx` (graphs for ONNX Runtime), `aoti` (graphs compiled "
        "ahead of time by AOTInductor), `plan` (plan.yaml: how it is run on its target).",
    )


ARTIFACTS: tuple[ArtifactName, ...] = ("model", "compile", "onnx", "aoti", "plan")
"""Every artifact, in the order in which they are made."""


class ModelSpec(Described):
    """A whole design, as a spec file states it: presets and defaults filled in, nothing derived."""

    name: str
    about: str = ""
    encoder: EncoderSpec
    adapter: AdapterSpec
    fusion: FusionSpec
    language: LanguageSpec
    head: HeadSpec
    token_budget: TokenBudget = TokenBudget.model_construct()
    target: Target | None = None
    training: Training | None = None
    artifacts: tuple[ArtifactName, ...] = ("model", "onnx")
    _source: SourceMap | None = PrivateAttr(default=None)

    @property
    def source(self) -> SourceMap | None:
        """Where each value was written; None for a spec made in Python."""
        return self._source

    def place(self, source: SourceMap) -> None:
        """Remembers where each value was written."""
        self._source = source

    def mini(self) -> ModelSpec:
        """The laptop-size twin: the same kinds, ratios and edge cases."""
        encoder, language = self.encoder.mini(), self.language.mini()
        adapter = self.adapter.mini_for(self.encoder.visual(), encoder.visual())
        visual = adapter.output(encoder.visual(), language)
        if self.fusion.needs_language_width() and visual.width != language.width:
            language = self.language.mini(visual.width)
        twin = self.model_copy(
            update={
                "name": f"{self.name}-mini",
                "encoder": encoder,
                "adapter": adapter,
                "language": language,
                "fusion": self.fusion.mini_for(language),
                "head": self.head.mini(),
                "token_budget": self.token_budget.model_copy(
                    update={
                        "images": _at_most(self.token_budget.images, 3),
                        "text": _at_most(self.token_budget.text, 128),
                    }
                ),
                "target": None,
            }
        )
        # A twin has shapes of its own, which no checkpoint of the design has.
        bare = {part: getattr(twin, part).model_copy(update={"weights": None}) for part in PARTS}
        return twin.model_copy(update=bare)

    @property
    def weight_folders(self) -> dict[Role, Path]:
        """The checkpoint folder of each part that names one."""
        named: dict[Role, str | None] = {part: getattr(self, part).weights for part in PARTS}
        return {part: Path(folder) for part, folder in named.items() if folder is not None}


def _at_most(size: int | Auto, most: int) -> int:
    """A size of the twin's budget."""
    return most if size == "auto" else min(size, most)
