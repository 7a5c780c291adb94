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
from torch.distributed.pipelining import PipelineStage
from torch.distributed.tensor import DTensor

from tests.distributed.held import saved, size_of, watched
from tests.distributed.moved import Moved
from tests.distributed.one_process import gradients, loaded
from vlmc.runtime.parallel.engine import Engine
from vlmc.runtime.parallel.plan_file import read_plan
from vlmc.runtime.parallel.training import Training

torch.set_num_threads(1)
CPU = torch.device("cpu")
LIMIT = 1e-5


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
    if dist.get_rank():  # the first one answers
        return {}
    wanted_loss, wanted = gradients(work)
    worst, where = 0.0, ""
    exact: dict[str, Tensor] = {}
    scale = torch.stack([grad.norm() for grad in wanted.values()]).max()
    for name, grad in wanted.items():
        got = found.pop(name, torch.zeros_like(grad))
        # Gradients a thousand times below the largest are sums of rounded terms far above them.
        norm = grad.norm().clamp(min=float(scale) / 1000)
        if name.endswith("key.bias"):
            # What is added to all keys alike changes no attention: its gradient is noise around 0.
            norm = scale
        elif grad.numel() == 1:
            # One sum over all tokens, whose terms all but cancel: rounding is that of the terms.
            norm = norm.clamp(min=float(scale) / 100)
        error = float((got - grad).norm() / norm)
        if error > LIMIT:
            exact = exact or gradients(work, torch.float64)[1]
            own = float((grad - exact[name]).norm() / norm)
            # One process rounds as much: no plan can be nearer to it than it is to the truth.
            error = LIMIT / 2 if error < 2 * own else error
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


def rounded(work: dict[str, Any]) -> dict[str, Any]:
    """A step in bf16 beside one process in fp32: errors of the loss and of all gradients together
    (`alone`: of one process in bf16), and what each rank held at most."""
    engine = engine_of(work)
    most = watched(engine)
    later = PipelineStage.backward_weight_one_chunk

    def then(*given: Any, **named: Any) -> Any:
        later(*given, **named)
        most()

    PipelineStage.backward_weight_one_chunk = then
    moved = Moved()
    try:
        with moved:
            loss = engine.step(work["rows"])
    finally:
        PipelineStage.backward_weight_one_chunk = later
    found = whole_gradients(engine)
    training = Training(engine, learning_rate=0.0)
    training.optimiser.step()
    kept = [v for state in training.optimiser.state.values() for v in state.values()]
    own = {
        "group": engine.group,
        **most(),
        "optimiser": sum(size_of(one) for one in kept if one.ndim),
        "moved": moved.bytes,
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    if dist.get_rank():
        return {}
    wanted_loss, wanted = gradients(work)
    _, alone = gradients(work, torch.bfloat16)
    return {
        "loss": abs(loss - wanted_loss) / abs(wanted_loss),
        "gradient": distance(found, wanted),
        "alone": distance(alone, wanted),
        "held": everyone,
    }


def moved(work: dict[str, Any]) -> list[dict[str, Any]]:
    """By rank: its pipeline group, its replica, and the bytes of a step by kind of collective."""
    engine = engine_of(work)
    counted = Moved()
    with counted:
        engine.step(work["rows"])
    everyone: list[Any] = [None] * dist.get_world_size()
    sizes = {kind: size for kind, size in counted.bytes.items() if size}
    own = {"group": engine.group, "replica": engine.replica, "moved": sizes}
    dist.all_gather_object(everyone, own)
    return everyone


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Between all gradients, taken as one vector, relative to the length of `wanted`."""
    pairs = [(found.get(name, torch.zeros_like(one)).float(), one) for name, one in wanted.items()]
    error = sum(float((got - one).square().sum()) for got, one in pairs)
    return (error / sum(float(one.square().sum()) for _, one in pairs)) ** 0.5


def lengths(work: dict[str, Any]) -> dict[str, Any]:
    """Two steps of unlike shapes by one engine: the second beside one process."""
    engine = engine_of(work)
    engine.step(work["before"])
    for stage in engine.stages:
        stage.zero_grad()
    loss = engine.step(work["rows"])
    wanted, _ = gradients(work)
    return {"loss": abs(loss - wanted) / abs(wanted)}


def frozen(work: dict[str, Any]) -> dict[str, Any]:
    """What a step of the optimiser changes, and what it keeps state of."""
    engine = engine_of(work)
    training = Training(engine, learning_rate=1e-2)
    before = {n: whole(p.detach()).clone() for n, p in engine.parameters().items()}
    training.step(work["rows"])
    found: dict[str, Any] = {"changed": [], "kept": [], "frozen_state": []}
    for name, parameter in engine.parameters().items():
        same = torch.equal(whole(parameter.detach()), before[name])
        found["kept" if same else "changed"].append(name)
        if parameter in training.optimiser.state and not parameter.requires_grad:
            found["frozen_state"].append(name)
    return found


def resume(work: dict[str, Any]) -> dict[str, Any]:
    """Losses of a run that goes on, and of runs of other plans from its checkpoint."""
    folder = Path(sys.argv[1]) / "checkpoint"
    training = Training(engine_of(work), learning_rate=1e-2)
    batches = work["batches"]
    losses = [training.step(rows) for rows in batches[:2]]
    training.save(folder)
    losses += [training.step(rows) for rows in batches[2:]]
    found: dict[str, Any] = {"losses": losses, "resumed": []}
    for plan in work["others"]:
        other = Training(engine_of({**work, "plan": plan}), learning_rate=1e-2)
        other.resume(folder)
        found["resumed"].append([other.step(rows) for rows in batches[other.steps :]])
    return found


def executed(work: dict[str, Any]) -> list[list[tuple[int, str, int]]]:
    """What each rank did in a step, in its order."""
    done: list[tuple[int, str, int]] = []
    forward, backward = PipelineStage.forward_one_chunk, PipelineStage.backward_one_chunk
    weight = PipelineStage.backward_weight_one_chunk

    def on_forward(self: Any, number: int, *given: Any, **named: Any) -> Any:
        done.append((self.stage_index, "F", number))
        return forward(self, number, *given, **named)

    def on_backward(self: Any, number: int, *given: Any, **named: Any) -> Any:
        full = named.get("full_backward", True)
        done.append((self.stage_index, "B" if full else "I", number))
        return backward(self, number, *given, **named)

    def on_weight(self: Any, number: int, *given: Any, **named: Any) -> Any:
        done.append((self.stage_index, "W", number))
        return weight(self, number, *given, **named)

    PipelineStage.forward_one_chunk = on_forward
    PipelineStage.backward_one_chunk = on_backward
    PipelineStage.backward_weight_one_chunk = on_weight
    try:
        engine_of(work).step(work["rows"])
    finally:
        PipelineStage.forward_one_chunk = forward
        PipelineStage.backward_one_chunk = backward
        PipelineStage.backward_weight_one_chunk = weight
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, done)
    return everyone


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


WORK: dict[str, Callable[[dict[str, Any]], Any]] = {
    "compare": compare,
    "rounded": rounded,
    "moved": moved,
    "lengths": lengths,
    "saved": lambda work: saved(engine_of(work), work["rows"]),
    "frozen": frozen,
    "resume": resume,
    "executed": executed,
}


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
