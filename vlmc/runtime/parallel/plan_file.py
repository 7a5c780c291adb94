"""plan.yaml as a training run reads it: every field checked, nothing coerced."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import yaml

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.parts import Parts
from vlmc.runtime.parallel.plan_rules import broken_for, broken_rules
from vlmc.runtime.parallel.ruled import Broken, Degrees, Held, Ruled

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
