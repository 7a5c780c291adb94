"""Which tensors go from stage to stage, their shapes, and which of them gradients come back for:
read off a run without numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vlmc.runtime.parallel.chain import Data, State
from vlmc.runtime.parallel.parts import Parts
from vlmc.runtime.parallel.stage import Cut, Stage


def borders(
    parts: Parts, model: nn.Module, all_cuts: Sequence[Cut], data: Data, *, shares: int
) -> list[State]:
    """What leaves each stage, on the meta device, by name in order; `model` is the whole one on the
    meta device, in the number format that is computed in, `data` a micro-batch of the step's
    shapes. A language model's sequences go on in so many `shares`."""
    empty = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in data.items()}
    found: list[State] = []
    state: State = {}
    for cut in all_cuts:
        stage = Stage(parts, model, cut)
        state = stage.run(state, stage.informed(empty))
        state = {name: _leaf(state[name]) for name in sorted(state)}
        found.append({name: _share(name, value, shares) for name, value in state.items()})
    return found


def _leaf(value: Tensor) -> Tensor:
    """It, without what it was made of."""
    return value.detach().contiguous().requires_grad_(value.requires_grad)


def _share(name: str, value: Tensor, shares: int) -> Tensor:
    return value[:, : value.shape[1] // shares] if name == "x" else value
