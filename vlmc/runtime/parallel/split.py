"""Tensor parallelism: projections shared out over the ranks of a group (Shoeybi et al., 2019)."""

from __future__ import annotations

from typing import Any

import torch.distributed.tensor
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from vlmc.runtime.parallel.parts import role_of
from vlmc.runtime.parallel.sequences import Sequences, enter_once
from vlmc.runtime.parallel.stage import Stage, sees

_COLUMNS = ("query", "key", "value", "distance", "gate", "up")
_ROWS = ("output", "down")
_OF_HEADS = {"content_bias": 0, "distance_bias": 0}
"""Parameters of an attention that have a row for each head."""
_HEAD_NORMS = ("query_norm", "key_norm")
VISION = ("encoder", "adapter")
"""Parts that may be split over fewer ranks than a tensor group has."""
_STACK_NORMS = ("language.norm", "language.encoder_norm", "language.decoder_norm")
"""Norms after a stack of blocks."""


def split(stage: Stage, tensor: DeviceMesh, vision: DeviceMesh, *, sequences: bool) -> None:
    """Shares the attention heads and hidden units of a stage's blocks out over `tensor`, those of
    encoder and adapter over `vision`. With `sequences` the ranks hold a share of a language model's
    tokens wherever these do not read each other. Frozen parameters stay frozen."""
    trained = {name: p.requires_grad for name, p in stage.named_parameters()}
    plans: dict[DeviceMesh, dict[str, ParallelStyle]] = {}
    model: Any = stage.model
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for path, module in modules.items():
        mesh = vision if role_of(path) in VISION else tensor
        if mesh.size() == 1:
            continue
        if _is_attention(module) or _is_mlp(module):
            shared = sequences and role_of(path) not in VISION
            made = _styles(module, Shard(1) if shared else Replicate())
            if made:
                plan = plans.setdefault(mesh, {})
                plan.update({f"{path}.{name}": style for name, style in made.items()})
                crosses = _is_attention(module) and path.startswith("gated_blocks.")
                itself = path.endswith(".attention") and not crosses
                masked = shared and crosses
                enter_once(module, mesh, shared=shared, itself=itself, masked=masked)
        if _is_attention(module):
            _share_heads(module, mesh)
        if path.endswith("_bias.table"):  # scores by distance: a column for each head
            share(module, "weight", mesh, Shard(1), Shard(1))
    # A tied head reads the embedding, which stays whole, as do the few words added to a vocabulary.
    projection = getattr(getattr(stage.model, "head", None), "projection", None)
    if isinstance(projection, nn.Linear) and _has_weight(projection):
        style = ColwiseParallel(output_layouts=Replicate())
        plans.setdefault(tensor, {})["head.projection"] = style
    for mesh, plan in plans.items():
        parallelize_module(stage.model, mesh, plan, src_data_rank=None)
    for name, parameter in stage.named_parameters():
        # Parallel modules are given new parameters, which would all ask for gradients.
        parameter.requires_grad_(trained[name])
    if sequences:
        _see_shares(stage, tensor)


def _see_shares(stage: Stage, mesh: DeviceMesh) -> None:
    """Sequences go through a stage as shares of their tokens."""
    stage.sequences = Sequences(mesh)
    stacks = [step.block for step in stage.cut.steps if step.block and not sees(step)]
    for name, parameter in stage.model.named_parameters():
        whole = isinstance(parameter, DTensor)  # split: it reads whole sequences
        in_stack = any(name.startswith(f"{path}.") for path in stacks)
        if not whole and (in_stack or name.startswith(_STACK_NORMS)):
            stage.partial.add(name)


def _styles(module: nn.Module, given: Placement) -> dict[str, ParallelStyle]:
    """How each projection of a block is shared out: by its outputs, then by its inputs, whose sums
    are `given` to all ranks or scattered."""
    found: dict[str, ParallelStyle] = {}
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and _has_weight(child):
            if name in _COLUMNS:
                found[name] = ColwiseParallel()
            elif name in _ROWS:
                found[name] = RowwiseParallel(output_layouts=given)
    return found


def _share_heads(attention: nn.Module, mesh: DeviceMesh) -> None:
    """What an attention has beside its projections: rows for each head, and norms of heads."""
    for name, dim in _OF_HEADS.items():
        share(attention, name, mesh, Shard(dim), Shard(dim))
    for name in _HEAD_NORMS:
        norm = getattr(attention, name, None)
        for own in ("weight", "bias") if isinstance(norm, nn.Module) else ():
            share(norm, own, mesh, Replicate(), Partial())


def share(
    module: Any, name: str, mesh: DeviceMesh, placement: Placement, gradient: Placement
) -> None:
    """Makes a parameter one of the whole group; code that runs in the module sees this rank's
    share, and its gradient is put together as `gradient` says."""
    parameter = module._parameters.get(name)
    if parameter is None:
        return
    made = torch.distributed.tensor.distribute_tensor(
        parameter.detach(), mesh, [placement], src_data_rank=None
    )
    setattr(module, name, nn.Parameter(made, requires_grad=parameter.requires_grad))

    inner = module.forward

    def run(*given: Any, **named: Any) -> Any:
        local = module._parameters[name]
        if isinstance(local, DTensor):
            local = local.to_local(grad_placements=[gradient])
        module.__dict__[name] = local
        try:
            return inner(*given, **named)
        finally:
            module.__dict__.pop(name, None)

    module.forward = run  # which checkpointing runs again, unlike hooks


def _has_weight(module: nn.Module) -> bool:
    """Whether it belongs to this stage."""
    return next(module.parameters(), None) is not None


def _is_attention(module: nn.Module) -> bool:
    return all(hasattr(module, name) for name in ("query", "key", "value", "output"))


def _is_mlp(module: nn.Module) -> bool:
    """A feed-forward network; a gate over channels (squeeze and excite) looks alike but is not."""
    return all(hasattr(module, name) for name in ("up", "down", "activation"))
