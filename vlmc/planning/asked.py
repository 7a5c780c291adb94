"""What a spec asks of a plan: its target as a cluster, its workload as a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from vlmc.diagnostics import Problem, SpecError, UsageError
from vlmc.diagnostics.nearest import listing
from vlmc.hardware import device
from vlmc.hardware.cluster import Cluster
from vlmc.ir import Arch, Role
from vlmc.partition.plan import Checkpointing, Placement
from vlmc.partition.request import Precision, Request
from vlmc.planning.shares import check_shares, placed
from vlmc.resolver.rules.fit import computed_in
from vlmc.spec.document import PARTS, Auto, ModelSpec, Parallel, Stage, Target
from vlmc.spec.identity import fingerprint

Word = TypeVar("Word")
Unsettled = Literal["count", "batch", "images", "text"]
WRITTEN: dict[Unsettled, str] = {
    "count": "target.count",
    "batch": "target.workload.batch",
    "images": "token_budget.images",
    "text": "token_budget.text",
}
"""Where a spec says `auto`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A design with the machine that it is for and the work that it is to do."""

    spec: ModelSpec
    """Of the design that is planned: the twin's where `arch` is one."""
    arch: Arch
    target: Target
    cluster: Cluster
    request: Request
    trained: tuple[Role, ...]
    """Parts whose parameters take gradients."""
    stage: str | None
    """Stage of training, where the design has stages."""
    auto: Unsettled | None = None
    """What is to be found beside the plan; 1 stands in its place."""


def asked(
    spec: ModelSpec,
    arch: Arch,
    *,
    batch: int | None = None,
    stage: str | None = None,
) -> Asked:
    """What `spec` asks for `arch`, the same design or its twin; `batch` in place of the spec's,
    `stage` for a stage of training other than the first.

    Raises UsageError where the spec has no target, or asks for what is not planned; SpecError
    where the fault has a place in the spec.
    """
    target = spec.target
    if target is None:
        raise UsageError(
            f"{spec.name} has no target: add `target: {{hardware: a100-80gb, count: 8}}`, or give "
            "--set target.hardware=a100-80gb"
        )
    design = spec.mini() if arch.mini else spec
    training = target.workload.mode == "train"
    chosen = _stage(spec, stage, training)
    whole = target.workload.batch if chosen is None else chosen.batch
    if batch is None and whole == "auto" and training:
        raise UsageError(
            "target.workload.batch: auto has no answer in training: more micro-batches take more "
            "time, not more memory; give --batch N"
        )
    unsettled = _unsettled(design, target, whole if batch is None else batch)
    size = (1 if whole == "auto" else whole) if batch is None else batch
    if unsettled != "batch":
        check_shares(spec, target, size)
    return Asked(
        spec=design,
        arch=arch,
        target=target,
        cluster=cluster_of(target),
        request=_request(spec, design, arch, target, size, chosen),
        trained=_trained(arch, chosen) if training else (),
        stage=None if chosen is None else chosen.name,
        auto=unsettled,
    )


def _unsettled(design: ModelSpec, target: Target, batch: int | Auto) -> Unsettled | None:
    """What is `auto`. Raises UsageError where several are: each would be an answer to the other."""
    budget = design.token_budget
    values: dict[Unsettled, int | Auto] = {
        "count": target.count,
        "batch": batch,
        "images": budget.images,
        "text": budget.text,
    }
    found: list[Unsettled] = [name for name in WRITTEN if values[name] == "auto"]
    if len(found) > 1:
        named = " and ".join(WRITTEN[name] for name in found)
        raise UsageError(
            f"{named} are `auto`: one is found at a time; give the others with "
            f"--set {WRITTEN[found[0]]}=N"
        )
    return found[0] if found else None


def cluster_of(target: Target) -> Cluster:
    """The target's devices and what joins them; one device where their number is `auto`. The spec
    must be sound."""
    card = device(target.hardware)
    per_node = target.per_node or card.per_node
    return Cluster(
        device=card,
        count=1 if target.count == "auto" else target.count,
        per_node=per_node,
        node_gbps=(card.link_gbps or 0) / 2,
        network_gbps=target.network_gbps or card.network_gbps or 0,
        price=target.price,
    )


def _stage(spec: ModelSpec, name: str | None, training: bool) -> Stage | None:
    stages: tuple[Stage, ...] = () if spec.training is None else spec.training.stages
    if name is not None and not training:
        raise UsageError(f"--stage {name}: the target's workload serves; give mode: train")
    if not training or not (stages or name):
        return None
    if name is None:
        return next(iter(stages))
    for stage in stages:
        if stage.name == name:
            return stage
    valid = listing(name, [stage.name for stage in stages]) if stages else "the spec names none"
    raise UsageError(f"--stage {name[:60]}: there is no such stage of training; {valid}")


def _trained(arch: Arch, stage: Stage | None) -> tuple[Role, ...]:
    """Parts that are optimised and have parameters, in the order in which data meets them."""
    named: tuple[Role, ...] = PARTS if stage is None else stage.train
    return tuple(
        node.role for node in arch.nodes if node.role in named and not node.frozen and node.count
    )


def _request(
    spec: ModelSpec,
    design: ModelSpec,
    arch: Arch,
    target: Target,
    batch: int,
    stage: Stage | None,
) -> Request:
    workload, tokens = target.workload, arch.tokens
    training = workload.mode == "train"
    said = 0 if arch.serving == "single_pass" else workload.generate
    text, generate = tokens.text, min(said, tokens.text)
    if workload.prompt is not None and not arch.mini and design.token_budget.text != "auto":
        text = workload.prompt + (0 if training else said)
    parallel = target.parallel
    language = parallel.words
    return Request(
        mode=workload.mode,
        batch=batch,
        text=text,
        images=tokens.images,
        tokens=tokens.per_image,
        generate=generate,
        precision=_precision(spec, target),
        optimiser="adamw" if spec.training is None else spec.training.optimiser,
        learning_rate=None if stage is None else stage.lr,
        epochs=None if stage is None else stage.epochs,
        spec=fingerprint(design),
        pipeline=_given(language.pipeline),
        data=_given(language.data),
        tensor=_given(language.tensor),
        placement=_placement(parallel),
        encoder_tensor=_given(parallel.apart.tensor) if parallel.apart else None,
        zero=_given(parallel.zero),
        micro_batch=_given(parallel.micro_batch),
        schedule=_given(parallel.schedule),
        chunks=_given(parallel.chunks),
        checkpointing=_checkpointing(parallel),
        first_token_limit=None if training else _seconds(workload.first_token_ms),
        token_limit=None if training else _seconds(workload.latency_ms),
    )


def _given(word: Word | Auto) -> Word | None:
    return None if word == "auto" else word


def _checkpointing(parallel: Parallel) -> Checkpointing | dict[str, Checkpointing] | None:
    """One word, or those that are given by block."""
    said = parallel.checkpointing
    if isinstance(said, dict):
        return {name: word for name, word in said.items() if word != "auto"}
    return _given(said)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _placement(parallel: Parallel) -> Placement | None:
    """Where the encoder goes, if its own degrees say so: no replicas beside the language model's
    leave no copies of it in a tensor group."""
    language = parallel.words
    alike = parallel.apart and parallel.apart.data == language.data != "auto"
    return "spread" if alike else None


def _precision(spec: ModelSpec, target: Target) -> Precision:
    """The number format in which is computed. Raises SpecError where plans know it as one of
    stored weights alone."""
    word = target.precision_of("language")
    if word == "tf32":
        return "fp32"
    if word in ("fp32", "bf16", "fp16"):
        return word
    path, formats = computed_in(target), device(target.hardware).formats
    planned = ("bf16", "fp16", "fp32")
    known = [one for one in planned if one in formats] or planned
    problem = Problem(
        code="VLMC012",
        path=path,
        message=f"nothing is planned in {word}, which weights alone are stored in",
        expected=", ".join(known),
        got=word,
        help=f"{path[-1]}: {known[0]}",
    )
    raise SpecError([placed(problem, spec.source, spec.name)])
