"""One rank: runs pieces of work on gloo and compares each with one process. Argument: the folder
that holds work.pickle; rank 0 leaves answers.json there."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.distributed.one_process import gradients, loaded
from vlmc.runtime.parallel.engine import Engine
from vlmc.runtime.parallel.plan_file import read_plan

torch.set_num_threads(1)
CPU = torch.device("cpu")


def engine_of(work: dict[str, Any], key: str = "plan") -> Engine:
    folder = Path(work["folder"])
    path = Path(sys.argv[1]) / f"plan-{dist.get_rank()}.yaml"
    path.write_text(yaml.safe_dump(work[key]))
    plan = read_plan(path)
    return Engine(work["parts"], plan, loaded(folder), folder / "weights", CPU)


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """All gradients of all ranks, whole, on every rank."""
    own: dict[str, Tensor | None] = {}
    for name, parameter in engine.parameters().items():
        grad = parameter.grad
        if isinstance(grad, DTensor):
            grad = grad.full_tensor()
        own[name] = grad
        assert parameter.requires_grad or grad is None, f"{name} is frozen and has a gradient"
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    found: dict[str, Tensor] = {}
    for one in everyone:
        for name, grad in one.items():
            if grad is not None:
                if name in found:
                    torch.testing.assert_close(grad, found[name], rtol=1e-4, atol=1e-7)
                found[name] = grad
    return found


def compare(work: dict[str, Any]) -> dict[str, Any]:
    """Loss and gradients beside those of one process: the largest relative errors."""
    engine = engine_of(work)
    loss = engine.step(work["rows"])
    found = whole_gradients(engine)
    wanted_loss, wanted = gradients(work)
    worst, where = 0.0, ""
    scale = torch.stack([grad.norm() for grad in wanted.values()]).max()
    for name, grad in wanted.items():
        got = found.pop(name, torch.zeros_like(grad))
        norm = grad.norm()
        if name.endswith("key.bias"):
            # What is added to all keys alike changes no attention: its gradient is noise around 0.
            norm = scale
        elif grad.numel() == 1:
            # One sum over all tokens, whose terms all but cancel: rounding is that of the terms.
            norm = norm.clamp(min=float(scale) / 100)
        error = float((got - grad).norm() / norm) if float(norm) else float(got.norm())
        if error > worst:
            worst, where = error, name
    extra = [name for name, grad in found.items() if float(grad.abs().max()) > 0]
    return {
        "loss": abs(loss - wanted_loss) / abs(wanted_loss),
        "gradient": worst,
        "where": where,
        "extra": extra,
        "compared": len(wanted),
    }


WORK: dict[str, Callable[[dict[str, Any]], Any]] = {"compare": compare}


def main() -> None:
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    answers: list[Any] = []
    for work in pickle.loads((folder / "work.pickle").read_bytes()):
        answers.append(WORK[work["do"]](work))
        print(work.get("name", ""), answers[-1], flush=True)
    if dist.get_rank() == 0:
        (folder / "answers.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
