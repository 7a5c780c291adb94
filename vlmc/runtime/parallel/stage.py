"""Pipeline stages: a chain cut where the plan says, and what goes from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import MethodType
from typing import Any

import torch
import torch.autograd
from torch import Tensor, nn

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.parallel.chain import Data, State, Step
from vlmc.runtime.parallel.parts import Parts, role_of
from vlmc.runtime.parallel.plan_file import Plan
from vlmc.runtime.parallel.ruled import Held
from vlmc.runtime.parallel.sequences import Sequences
from vlmc.runtime.parallel.shared_images import SharedImages
from vlmc.runtime.parallel.untyped import RECOMPUTATION
from vlmc.runtime.parallel.words import bias_of, context_of


class Through(torch.autograd.Function):
    """Hands tensors on, and gives every input a gradient: what is sent behind something trained
    always asks for one, and always gets one, though a micro-batch shows no image. A pipeline's
    transfers are fixed; they fail where a gradient is missing."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.shapes = [(one.shape, one.dtype, one.device) for one in tensors[count:]]
        # The same memory, but no view: a pipeline takes what it has sent out of its graph in place.
        return tuple(one.data for one in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        zeros = [torch.zeros(s, dtype=d, device=where) for s, d, where in ctx.shapes]
        return (None, *gradients, *zeros)


_THROUGH: Any = Through


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One stage's share of the chain."""

    index: int
    steps: tuple[Step, ...]
    reached: tuple[bool, ...]
    """Whether gradients pass through each step: it, or something before it, is trained."""
    fed: bool
    """Whether something before the stage is trained."""
    last: bool


def cuts(steps: Sequence[Step], plan: Plan, model: nn.Module) -> list[Cut]:
    """The stages of a plan. Raises UsageError where they do not follow the chain."""
    _check_depth(plan.stages, model)
    _check_checkpointing(steps, plan.checkpointing)
    names = [name for name, _ in model.named_parameters()]
    where = _places(steps, plan.stages, names)
    found: list[Cut] = []
    reached = False
    for index in range(len(plan.stages)):
        own = tuple(step for step, place in zip(steps, where, strict=True) if place == index)
        if not own:
            raise UsageError(f"stages[{index}] holds nothing that runs")
        fed = reached
        flags: list[bool] = []
        for step in own:
            reached = reached or any(role_of(n) in plan.trained for n in owned(step, names))
            flags.append(reached)
        last = index == len(plan.stages) - 1
        found.append(Cut(index=index, steps=own, reached=tuple(flags), fed=fed, last=last))
    return found


def unread(model: Any, steps: Sequence[Step]) -> list[nn.Module]:
    """Blocks of stacks that no step reads: the last one of an encoder whose features are taken
    before it."""
    names = [name for name, _ in model.named_parameters()]
    read = [name for step in steps for name in owned(step, names)]
    modules: dict[str, nn.Module] = dict(model.named_modules())
    return [
        block
        for path, stack in modules.items()
        if isinstance(stack, nn.ModuleList)
        for number, block in enumerate(stack)
        if not any(name.startswith(f"{path}.{number}.") for name in read)
    ]


def owned(step: Step, names: Sequence[str]) -> list[str]:
    """Those of the parameters that a step reads."""
    return [n for n in names if any(n == path or n.startswith(f"{path}.") for path in step.owns)]


def _check_depth(stages: Sequence[Sequence[Held]], model: Any) -> None:
    """Refuses numbers that a stack does not reach: no step would miss those blocks."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for index, stage in enumerate(stages):
        for one in stage:
            if "*" in one.block and one.final not in modules:
                raise UsageError(f"stages[{index}]: the model has no {one.final[:60]}")


def _check_checkpointing(steps: Sequence[Step], checkpointing: dict[str, str]) -> None:
    """Refuses names of no block, which would be kept whole in silence. What lies within a step
    that is never cut has no step of its own."""
    for key in checkpointing:
        if not any(_matches(key, s.name) or key.startswith(f"{s.name}.") for s in steps):
            raise UsageError(f"checkpointing: the model has no {key[:60]}")


def _places(
    steps: Sequence[Step], stages: Sequence[Sequence[Held]], names: Sequence[str]
) -> list[int]:
    """The stage of each step. One without parameters that the plan does not name goes with its
    part's step before it, else with what follows it."""
    found: list[int | None] = []
    for index, step in enumerate(steps):
        of = {i for i, held in enumerate(stages) if any(one.related(step.name) for one in held)}
        if len(of) > 1:
            raise UsageError(f"stages: {step.name} is held by more than one stage")
        if not of and owned(step, names):
            raise UsageError(f"stages: no stage holds {step.name}")
        before = index and role_of(steps[index - 1].name) == role_of(step.name)
        found.append(min(of) if of else found[-1] if before else None)
    following = len(stages) - 1
    placed: list[int] = []
    for place in reversed(found):
        following = following if place is None else place
        placed.append(following)
    placed.reverse()
    if placed != sorted(placed):
        bad = next(i for i in range(1, len(placed)) if placed[i] < placed[i - 1])
        raise UsageError(f"stages: {steps[bad].name} stands before what it follows in the model")
    return placed


def prune(model: nn.Module, cut: Cut, all_cuts: Sequence[Cut]) -> None:
    """Takes out the parameters of other stages. Those that no step reads go with the last step of
    their part."""
    names = [name for name, _ in model.named_parameters()]
    kept = {name for step in cut.steps for name in owned(step, names)}
    read = {name for one in all_cuts for step in one.steps for name in owned(step, names)}
    for name in names:
        if name in kept:
            continue
        if name not in read:
            of = [c.index for c in all_cuts for s in c.steps if role_of(s.name) == role_of(name)]
            if max(of, default=0) == cut.index:
                continue
        path, _, own = name.rpartition(".")
        model.get_submodule(path).register_parameter(own, None)


class Stage(nn.Module):
    """A share of a model. Tensors come in as the stage before sent them, and go out likewise; the
    last stage gives its micro-batch's share of the loss."""

    def __init__(self, parts: Parts, model: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.parts = parts
        self.model = model
        self.cut = cut
        self.images: SharedImages | None = None
        self.sequences = Sequences()
        self.partial: set[str] = set()
        """Parameters that see another share of the images or tokens on other ranks of a tensor
        group."""
        self.recomputed: list[nn.Module] = []
        """Modules whose forward pass the backward pass runs again."""
        self.always = False
        """Whether gradients go from stage to stage even where nothing before is trained: zeros,
        without which a schedule that puts gradients of weights off finds no way to them."""
        self.takes: tuple[str, ...] = ()
        self.fed: frozenset[str] = frozenset()
        """Of those, what something trained was made of: of others no gradient is worth making."""
        self.feed: list[Data] = []
        self.anchor = torch.zeros((), requires_grad=True)
        for step in cut.steps:
            if step.block is not None and step.look is not None:
                block = model.get_submodule(step.block)
                block.look = MethodType(step.look, block)  # type: ignore[assignment]

    def forward(self, *received: Tensor, number: Tensor) -> tuple[Tensor, ...] | Tensor:
        data = self.informed(self.feed[int(number)])
        given = zip(self.takes, received, strict=True)
        state = self.run({n: one if n in self.fed else one.detach() for n, one in given}, data)
        # Queries are there once for all images, until they are sent.
        sent = tuple(state[name].contiguous() for name in sorted(state))
        if not self.asks:
            return sent
        anchor = self.anchor.to(sent[0].device)
        sent = _THROUGH.apply(len(sent), *sent, *received, anchor)
        return sent[0] if self.cut.last else sent

    @property
    def asks(self) -> bool:
        """Whether gradients of what it sends come back."""
        return self.always or self.cut.last or self.cut.reached[-1]

    @property
    def answers(self) -> bool:
        """Whether it sends gradients of what it receives."""
        return self.always or self.cut.fed

    def informed(self, data: Data) -> Data:
        """The micro-batch with how its sequences are shared out, and with what all layers of a
        stack share, made when first asked for."""
        context = cache(partial(context_of, self.parts, self.model, data))
        bias = cache(partial(bias_of, self.model, data))
        return {**data, "sequences": self.sequences, "context": context, "bias": bias}

    def run(self, state: State, data: Data) -> State:
        """The stage's steps, without what a backward pass needs where none will come."""
        given = data if self.images is None else self.images.shared(data)
        for step, reached in zip(self.cut.steps, self.cut.reached, strict=True):
            with torch.set_grad_enabled(reached and torch.is_grad_enabled()):
                if self.images is not None and given is not data and not sees(step):
                    given, state = data, self.images.gathered(state, data)
                state = step.run(self.model, state, given)
        if self.images is not None and given is not data:
            state = self.images.gathered(state, data)
        return state


def sees(step: Step) -> bool:
    """Whether a step runs encoder or adapter."""
    return role_of(step.name) in ("encoder", "adapter")


def save_less(stage: Stage, checkpointing: dict[str, str]) -> list[nn.Module]:
    """Recomputes blocks in the backward pass where the plan says so: all of a block, or
    (selective) its attention. Gives what is recomputed."""
    found: list[nn.Module] = []
    for step in stage.cut.steps:
        if step.block is None:
            continue
        kind = next((v for k, v in checkpointing.items() if _matches(k, step.block)), "none")
        block: Any = stage.model.get_submodule(step.block)
        if kind == "selective":
            for attention in (getattr(block, name, None) for name in ("attention", "cross")):
                if attention is not None:
                    _recompute(attention, "forward")
                    found.append(attention)
        elif kind == "full":
            _recompute(block, "look" if step.look is not None else "forward")
            found.append(block)
    return found


def _recompute(module: Any, method: str) -> None:
    inner = getattr(module, method)

    def run(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return inner(*given, **named)
        return RECOMPUTATION.checkpoint(inner, *given, use_reentrant=False, **named)

    setattr(module, method, run)


def _matches(pattern: str, path: str) -> bool:
    head, star, tail = pattern.partition("*")
    if not star:
        return pattern == path
    return path.startswith(head) and path.endswith(tail) and path[len(head) :].isdigit()
