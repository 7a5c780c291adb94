"""deepspeed.json: the plans that DeepSpeed can run, as its config.

DeepSpeed takes a misspelt key at the top, or a value of another type there, without a word; these
types do not. Keys and meanings: https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlmc.diagnostics import UsageError
from vlmc.partition.plan import ParallelPlan

FILE = "deepspeed.json"


class Section(BaseModel):
    """A part of the config: unknown keys are errors, nothing is coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Adam(Section):
    """Parameters of AdamW, as torch's own."""

    lr: float = Field(default=1e-5, gt=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    torch_adam: bool = True


class Optimizer(Section):
    """The optimiser."""

    type: Literal["AdamW"] = "AdamW"
    params: Adam = Adam()


class Zero(Section):
    """What replicas share out (Rajbhandari et al., 2020)."""

    stage: Literal[0, 1, 2, 3]
    contiguous_gradients: bool = True
    overlap_comm: bool = True
    reduce_scatter: bool = True


class Enabled(Section):
    """A number format that is on or off."""

    enabled: bool


class Config(Section):
    """The whole file."""

    train_batch_size: int = Field(ge=1)
    train_micro_batch_size_per_gpu: int = Field(ge=1)
    gradient_accumulation_steps: int = Field(ge=1)
    optimizer: Optimizer = Optimizer()
    zero_optimization: Zero
    bf16: Enabled
    steps_per_print: int = Field(default=10, ge=1)

    def replicas(self) -> int:
        """Over how many devices the batch goes."""
        return self.train_batch_size // (
            self.train_micro_batch_size_per_gpu * self.gradient_accumulation_steps
        )

    @model_validator(mode="after")
    def _whole(self) -> Config:
        share = self.train_micro_batch_size_per_gpu * self.gradient_accumulation_steps
        if self.train_batch_size % share:
            raise ValueError(
                f"train_batch_size {self.train_batch_size} is no multiple of {share}, "
                "micro-batch x accumulation"
            )
        return self


def refusal(plan: ParallelPlan) -> str | None:
    """Why DeepSpeed cannot run a plan; None where it can."""
    reasons = {
        "the plan serves": plan.mode != "train",
        "DeepSpeed's pipeline takes models of its own kind, and no ZeRO beyond stage 1": (
            plan.mesh.pipeline > 1
        ),
        "DeepSpeed splits tensors of models that it knows alone": plan.mesh.tensor > 1,
        f"the optimiser {plan.optimiser} is not written for it": plan.optimiser != "adamw",
        "fp16 overflows in training": plan.precision == "fp16",
        "what is recomputed stands in the model's code, not in DeepSpeed's config": any(
            kept != "none" for kept in plan.checkpointing.values()
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def config_of(plan: ParallelPlan) -> Config:
    """The config of a plan. Raises UsageError where DeepSpeed cannot run it."""
    reason = refusal(plan)
    if reason is not None:
        raise UsageError(f"no {FILE} for this plan: {reason}")
    rate = plan.learning_rate
    return Config(
        train_batch_size=plan.batch,
        train_micro_batch_size_per_gpu=plan.micro_batch,
        gradient_accumulation_steps=plan.micro_batches,
        optimizer=Optimizer(params=Adam() if rate is None else Adam(lr=rate)),
        zero_optimization=Zero(stage=plan.zero),
        bf16=Enabled(enabled=plan.precision == "bf16"),
    )


def text_of(plan: ParallelPlan) -> str:
    """The file of a plan. Raises UsageError as `config_of`."""
    return config_of(plan).model_dump_json(indent=2) + "\n"


def check(document: dict[str, Any], plan: ParallelPlan | None = None) -> Config:
    """The config in a document, which may be edited by hand; for `plan` where one is given.

    Raises UsageError, naming the key, for what DeepSpeed would pass over: an unknown key, a value
    of another type, a batch that is not what the plan says.
    """
    try:
        found = Config.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or FILE
        raise UsageError(f"{FILE}: {place}: {first['msg']}") from None
    if plan is None:
        return found
    wanted = config_of(plan)
    for key in (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
    ):
        if getattr(found, key) != getattr(wanted, key):
            raise UsageError(
                f"{FILE}: {key} is {getattr(found, key)}, but the plan says {getattr(wanted, key)}"
            )
    if found.zero_optimization.stage != plan.zero:
        raise UsageError(f"{FILE}: zero_optimization.stage is not the plan's, {plan.zero}")
    return found
