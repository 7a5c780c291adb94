"""What a rank holds of weights, of their gradients, and for backward passes in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vlmc.runtime.parallel.batches import Row
from vlmc.runtime.parallel.engine import Engine


def watched(engine: Engine) -> Callable[[], dict[str, int]]:
    """Looks at what an engine holds after each forward pass of a stage, and when it is called; the
    most bytes of weights and of their gradients so far."""
    most = {"weights": 0, "gradients": 0}

    def look(*given: Any) -> dict[str, int]:
        weights, grads = 0, 0
        for stage in engine.stages:
            sharded = {id(p): p for p in stage.parameters()}
            for module in stage.modules():
                for group in getattr(fully_shard.state(module), "_fsdp_param_groups", ()):  # type: ignore[attr-defined]
                    for one in group.fsdp_params:
                        gathered = getattr(one, "_unsharded_param", None)
                        sharded.pop(id(gathered), None)
                        sharded[id(one.sharded_param)] = one.sharded_param
                        copies = [t.untyped_storage().nbytes() for t in one.all_gather_outputs]
                        weights += sum(copies)
                        late = one.unsharded_accumulated_grad
                        for grad in (late, None if gathered is None else gathered.grad):
                            grads += 0 if grad is None else size_of(grad)
            weights += sum(size_of(p) for p in sharded.values())
            grads += sum(size_of(p.grad) for p in sharded.values() if p.grad is not None)
        most["weights"] = max(most["weights"], weights)
        most["gradients"] = max(most["gradients"], grads)
        return most

    for stage in engine.stages:
        run = stage.run

        def then(*given: Any, run: Any = run) -> Any:
            made = run(*given)
            look()
            return made

        stage.run = then  # type: ignore[method-assign]
    return look


def saved(engine: Engine, rows: Sequence[Row]) -> int:
    """Bytes that a step's forward passes keep for the backward ones, parameters apart; whole
    memories, each counted once."""
    weights = {_memory(p)[0] for p in engine.parameters().values()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        place, size = _memory(tensor)
        if place not in weights:  # what is kept stays, so that no other takes its place
            kept.setdefault(place, (tensor.detach(), size))
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        engine.step(rows)
    return sum(size for _, size in kept.values())


def _memory(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's memory begins, and its bytes."""
    storage = _local(tensor.detach()).untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def size_of(tensor: Tensor) -> int:
    local = _local(tensor)
    return local.numel() * local.element_size()


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
