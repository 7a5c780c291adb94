"""deepspeed.json: the plans that DeepSpeed can run, as its config.

DeepSpeed takes a misspelt key at the top, or a value of another type there, without a word; these
types do not. Keys and meanings: https://www.deepspeed.ai/docs/config-json/.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmc.diagnostics import Diagnostic, Problem, Span, SpecError, UsageError
from vlmc.partition.plan import ParallelPlan
from vlmc.spec.reader import read, read_text
from vlmc.spec.source import SourceMap
from vlmc.spec.tree import plain
from vlmc.spec.validate import validate

FILE = "deepspeed.json"
_SAID: tuple[tuple[str, ...], ...] = (
    ("train_batch_size",),
    ("train_micro_batch_size_per_gpu",),
    ("gradient_accumulation_steps",),
    ("zero_optimization", "stage"),
    ("bf16", "enabled"),
)
"""What a plan says of a config; `_RATE`, too, where it is for a stage of training."""
_RATE = ("optimizer", "params", "lr")
Beta = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, nothing is coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Adam(Section):
    """Parameters of AdamW, as torch's own."""

    lr: float = Field(default=1e-5, gt=0)
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    torch_adam: bool = True


class Optimizer(Section):
    """The optimiser."""

    type: Literal["AdamW"] = "AdamW"
    params: Adam = Adam()


class Zero(Section):
    """What replicas share out (Rajbhandari et al., 2020)."""

    stage: int = Field(ge=0, le=3)  # a Literal of numbers takes true and 2.0, too
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


def faults_beside(file: FilePath, plan: ParallelPlan) -> list[Diagnostic]:
    """What is wrong with the configs that lie beside the file of a plan to train with, or in the
    parallel/ of its build, edited by hand perhaps: what DeepSpeed would pass over, and what is not
    as the plan says."""
    places = (file.with_name(FILE), file.parent / "parallel" / FILE)
    found: list[Diagnostic] = []
    for path in places:
        if plan.mode == "train" and path.is_file():
            try:
                found += _faults(path, plan)
            except SpecError as error:
                found += error.diagnostics
    return found


def _faults(path: FilePath, plan: ParallelPlan) -> list[Diagnostic]:
    text = read_text(path)
    try:
        json.loads(text, parse_int=str)  # of any length: read() bounds numbers
    except json.JSONDecodeError as error:
        return [_no_json(error, str(path))]
    except RecursionError:
        pass  # read() says so
    document = read(text, str(path))
    source = SourceMap(document.tree)
    reason = refusal(plan)
    if reason is not None:
        found = [_unlike((), f"no {FILE}", reason, "remove the file, or change the plan")]
    else:
        config, found = validate(Config, plain(document.tree), ())
        known = {problem.path for problem in found}
        if config is not None:
            found += [one for one in _differences(config, plan) if one.path not in known]
    return [*document.faults, *map(source.locate, found)]


def _no_json(error: json.JSONDecodeError, file: str) -> Diagnostic:
    """What YAML may take and JSON does not."""
    lines = [*error.doc.splitlines(), ""]
    line, column = min(error.lineno, len(lines)), error.colno
    return Diagnostic(
        code="VLMC002",
        message="the file is not JSON",
        span=Span(file=file, line=line, column=column, end_column=column + 1, text=lines[line - 1]),
        expected="JSON, as DeepSpeed reads it",
        got=error.msg,
        help="vlmc plan SPEC --output plan.yaml",
    )


def _differences(config: Config, plan: ParallelPlan) -> Iterator[Problem]:
    """Where a config runs another step than the plan."""
    for path in _SAID if plan.learning_rate is None else (*_SAID, _RATE):
        wanted, got = (_at(one.model_dump(), path) for one in (config_of(plan), config))
        if got != wanted:
            value = json.dumps(wanted)
            yield _unlike(path, value, json.dumps(got), f'"{path[-1]}": {value}')


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = config[key]
    return config


def _unlike(path: tuple[str, ...], expected: str, got: str, help_: str) -> Problem:
    return Problem(
        code="VLMC164",
        path=path,
        message=f"{FILE} is not as the plan says",
        expected=expected,
        got=got,
        help=help_,
    )
