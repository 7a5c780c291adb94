"""What a rank holds of weights and of their gradients while it takes a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

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


def size_of(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()
