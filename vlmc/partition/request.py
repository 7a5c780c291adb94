"""What is asked of a plan, and the answer where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vlmc.components.fields import ZeroStage
from vlmc.diagnostics.faults import UsageError
from vlmc.hardware.cluster import Cluster
from vlmc.hardware.device import BYTES
from vlmc.ir.training import OPTIMISERS
from vlmc.partition.plan import Checkpointing, Placement, Schedule

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a plan is for. None leaves a choice to the search."""

    mode: Literal["train", "serve"]
    batch: int
    """Sequences of a step, or of those that are answered at one time, over all devices."""
    text: int
    """Text tokens of a sequence; when serving, prompt and answer together."""
    images: int = 1
    tokens: int | None = None
    """Visual tokens of an image, where the design's own number is not meant."""
    generate: int = 128
    """Tokens of an answer; 0 where it is there when the prompt is read."""
    precision: Precision = "bf16"
    optimiser: str = "adamw"
    learning_rate: float | None = None
    """Handed on to whoever runs the plan, as are `epochs`."""
    epochs: int | None = None
    spec: str = ""
    """sha256 of the resolved spec."""
    pipeline: int | None = None
    data: int | None = None
    tensor: int | None = None
    sequence_parallel: bool | None = None
    zero: ZeroStage | None = None
    micro_batch: int | None = None
    schedule: Schedule | None = None
    chunks: int | None = None
    checkpointing: Checkpointing | Mapping[str, Checkpointing] | None = None
    """Of all kinds of blocks, or by kind in the report's names; others are left to the search."""
    placement: Placement | None = None
    encoder_tensor: int | None = None
    """Tensor degree of encoder and adapter, which divides `tensor`."""
    first_token_limit: float | None = None
    """Seconds until the first token, at most."""
    token_limit: float | None = None
    """Seconds for each further token, at most."""

    @property
    def steps(self) -> int:
        """Steps in which an answer is made: its first token is there when the prompt is read."""
        return max(0, self.generate - 1)


class Infeasible(Exception):
    """No plan does what is asked. `constraint` is what binds, with its arithmetic; `advice`, what
    would help."""

    def __init__(self, constraint: str, advice: str = "") -> None:
        super().__init__(f"{constraint}. {advice}" if advice else constraint)
        self.constraint = constraint
        self.advice = advice


def check(request: Request, cluster: Cluster) -> None:
    """Refuses what no search could answer: UsageError."""
    for name, least in (
        ("batch", 1),
        ("text", 1),
        ("tokens", 1),
        ("generate", 0),
        ("images", 0),
        ("chunks", 1),
    ):
        size = getattr(request, name)
        if size is not None and size < least:
            raise UsageError(f"{name} must be at least {least}, not {size}")
    if request.optimiser not in OPTIMISERS:
        raise UsageError(
            f"optimiser must be one of {', '.join(OPTIMISERS)}, not {request.optimiser!r}"
        )
    _check_cluster(cluster, request.precision)
    for name in ("first_token_limit", "token_limit"):
        limit = getattr(request, name)
        if limit is not None and not limit > 0:
            raise UsageError(f"{name} must be above 0 seconds, not {limit}")


def _check_cluster(cluster: Cluster, precision: str) -> None:
    for name in ("count", "per_node"):
        if getattr(cluster, name) < 1:
            raise UsageError(f"{name} must be at least 1, not {getattr(cluster, name)}")
    if cluster.count > 1 and cluster.per_node > 1 and not cluster.node_gbps > 0:
        raise UsageError(
            f"{cluster.count} devices need a link within a node: node_gbps is {cluster.node_gbps}"
        )
    if cluster.count > cluster.per_node and not cluster.network_gbps > 0:
        raise UsageError(
            f"{cluster.count} devices at {cluster.per_node} a node need a network: network_gbps is "
            f"{cluster.network_gbps}"
        )
    if cluster.count > cluster.per_node and cluster.count % cluster.per_node:
        raise UsageError(
            f"{cluster.count} devices do not fill nodes of {cluster.per_node}: give a multiple"
        )
    if cluster.price is not None and not cluster.price > 0:
        raise UsageError(f"price must be above 0, not {cluster.price}; leave it out where unknown")
    if precision not in cluster.device.tflops:
        raise UsageError(
            f"{cluster.device.name} does not compute in {precision}, but in "
            f"{', '.join(name for name in cluster.device.formats if name in BYTES)}"
        )
