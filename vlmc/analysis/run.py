"""A training step of a shallow design, recorded at as many sizes as its polynomials need."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import checkpoint

from vlmc.analysis.fit import Fit
from vlmc.analysis.operators import FusedAttention, Memory, tensors
from vlmc.analysis.polynomial import Polynomial
from vlmc.analysis.report import Mode
from vlmc.analysis.serving import serving_step
from vlmc.analysis.shrink import Shrunk
from vlmc.analysis.steps import Inputs, Step, training_step
from vlmc.analysis.trace import Record, Recorder
from vlmc.builder.model import WithoutValues, module_class, own_parameters
from vlmc.components.shared.attention import Attention
from vlmc.components.shared.relative import RelativeAttention
from vlmc.ir import Arch, Role

Kept = Literal["none", "selective", "full"]
"""Which activations are not kept for the backward pass: none of them, those inside of attention,
those inside of blocks."""

KEPT: tuple[Kept, ...] = ("none", "selective", "full")


@dataclass(frozen=True, slots=True)
class Runs:
    """The same run at the points of a fit."""

    records: tuple[Record, ...]

    @property
    def first(self) -> Record:
        """The one whose events stand for all."""
        return self.records[0]


class Trial:
    """A shallow model without values, and its training step."""

    def __init__(
        self,
        shrunk: Shrunk,
        mode: Mode,
        trained: tuple[Role, ...],
        dtype: torch.dtype,
        frames: int,
    ) -> None:
        self.arch = shrunk.arch
        self.stacks = tuple(shrunk.stacks)
        self.dtype = dtype
        self.memory = Memory()
        with _format(dtype):
            self.model: Any = built(shrunk.arch, trained)
        for path, module in self.model.named_modules():
            if path:
                module.register_forward_pre_hook(partial(self._called, path))
                module.register_forward_hook(partial(self._returned, path), always_call=True)
            if isinstance(module, Attention):  # keys and values are made without a call of it
                given: Any = module
                given.key_value = partial(self._key_value, path, module.key_value)
        self.step: Step = (
            training_step(shrunk.arch, frames)
            if mode == "train"
            else serving_step(shrunk.arch, mode, frames)
        )
        self.fit = Fit(self.step.basis, substitute=self.step.meaning, above=self.step.above)
        self._once(self.fit.points[0])  # what torch does the first time only is none of the costs

    def runs(self, kept: Kept) -> Runs:
        """Recorded at every point of the fit."""
        with self._checkpointed(kept):
            records = tuple(self._once(point) for point in self.fit.points)
        for one in records[1:]:
            assert one.events == records[0].events, "operators do not depend on sizes"
        return Runs(records)

    def inputs(self) -> Polynomial:
        """Bytes of the step's inputs."""
        return self.fit(
            [sum(one.nbytes for one in self._given(p).values()) for p in self.fit.points]
        )

    def _given(self, point: Mapping[str, int]) -> Inputs:
        with torch.device("meta"), _format(self.dtype):
            return self.step.inputs(point)

    def _once(self, point: Mapping[str, int]) -> Record:
        given = self._given(point)
        self.model.zero_grad(set_to_none=True)
        recorder = self.recorder = Recorder(self.model, self.memory)
        recorder.give([*self.model.parameters(), *given.values()])
        with _uncollected(), FusedAttention(), recorder:
            loss = self.step.run(self.model, given, recorder)
            if loss is not None and loss.requires_grad:
                recorder.backward(loss)
        return recorder.finish()

    def _called(self, path: str, _: object, given: tuple[object, ...]) -> None:
        self.recorder.called(path, given)

    def _returned(self, path: str, _: object, given: object, made: object) -> None:
        self.recorder.returned(path, given, made)

    def _key_value(self, path: str, method: Callable[..., Any], source: Any, *args: Any) -> Any:
        self.recorder.reads(path, source)
        with self.recorder.inside(path):
            return method(source, *args)

    @contextmanager
    def _checkpointed(self, kept: Kept) -> Generator[None]:
        """Runs blocks, or attention within them, through torch.utils.checkpoint."""
        wrapped: list[Any] = []
        for path, module in self.model.named_modules():
            stack, _, number = path.rpartition(".")
            block = stack in self.stacks and number.isdigit()
            inner = isinstance(module, (Attention, RelativeAttention)) and any(
                path.startswith(f"{one}.") for one in self.stacks
            )
            if (block and kept == "full") or (inner and kept == "selective"):
                module.forward = partial(self._again, path, module.forward)
                wrapped.append(module)
        try:
            yield
        finally:
            for module in wrapped:
                del module.forward

    def _again(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not any(one.requires_grad for one in tensors((args, kwargs))) and not any(
            one.requires_grad for one in self.model.get_submodule(path).parameters()
        ):
            return forward(*args, **kwargs)

        def body(*inner: Any, **more: Any) -> Any:
            # backward() leaves all modes of torch functions.
            with FusedAttention(), self.recorder.inside(path):
                return forward(*inner, **more)

        again: Any = getattr(checkpoint, "checkpoint")  # noqa: B009 (untyped)
        return again(body, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def built(arch: Arch, trained: tuple[Role, ...]) -> nn.Module:
    """A model on the meta device in which the parts `trained` take gradients."""
    with WithoutValues(), torch.device("meta"):
        parts = {
            node.role: module_class(node)(**node.arguments)
            for node in arch.nodes
            if node.role != "fusion"
        }
        fusion = arch.node("fusion")
        model = module_class(fusion)(**parts, **fusion.arguments)
    for node in arch.nodes:
        for _, parameter in own_parameters(arch, model, node):
            parameter.requires_grad_(node.role in trained)
    return model


@contextmanager
def _uncollected() -> Generator[None]:
    """Tensors die when nothing refers to them, not when garbage happens to be collected."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _format(dtype: torch.dtype) -> Generator[None]:
    """New tensors are of `dtype` within."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
