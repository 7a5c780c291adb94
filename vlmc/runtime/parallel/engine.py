"""A plan at work: the model of a build on the ranks of a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.tensor import DTensor

from vlmc.ir.training import whole_weights
from vlmc.runtime.parallel.batches import Row, micro_batches
from vlmc.runtime.parallel.chain import Data
from vlmc.runtime.parallel.copies import Copies, local_of
from vlmc.runtime.parallel.parts import Parts, role_of
from vlmc.runtime.parallel.plan_file import Plan
from vlmc.runtime.parallel.plan_rules import puts_off
from vlmc.runtime.parallel.put_off import PuttingOff
from vlmc.runtime.parallel.shapes import borders
from vlmc.runtime.parallel.shared_images import SharedImages
from vlmc.runtime.parallel.split import VISION, split
from vlmc.runtime.parallel.stage import Stage, cuts, prune, save_less, sees, unread
from vlmc.runtime.parallel.untyped import DISTRIBUTED
from vlmc.runtime.parallel.vision import vision_steps
from vlmc.runtime.parallel.words import word_steps

_AXES = ("pipeline", "replicate", "shard", "copies", "vision")
"""The last two are of a tensor group: copies of encoder and adapter, and ranks that share each."""


class Engine:
    """This rank's stages of a model, ready to take steps.

    `model_py` is the module of the build's model.py; `weights` its folder of weights. All ranks of
    the plan's mesh make one, in the same order of plans.
    """

    def __init__(
        self, parts: Parts, plan: Plan, model_py: Any, weights: Path, device: torch.device
    ) -> None:
        self.parts, self.plan, self.device = parts, plan, device
        mesh = plan.mesh
        shard = mesh.data if plan.zero else 1
        vision = plan.encoder_tensor
        sizes = (mesh.pipeline, mesh.data // shard, shard, mesh.tensor // vision, vision)
        self.mesh = init_device_mesh(device.type, sizes, mesh_dim_names=_AXES)
        both: Any = self.mesh["copies", "vision"]
        self.tensor: DeviceMesh = both._flatten("tensor")
        place = dict(zip(_AXES, self.mesh.get_coordinate() or (), strict=True))
        self.group = place["pipeline"]
        self.replica = place["replicate"] * shard + place["shard"]
        self.dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        self.looped = whole_weights(plan.schedule, mesh.pipeline)
        with torch.device("meta"):
            self.whole: nn.Module = model_py.build().to(self.dtype)
        for name, parameter in self.whole.named_parameters():
            parameter.requires_grad_(role_of(name) in plan.trained)
        steps = [*vision_steps(parts), *word_steps(parts)]
        self.cuts = cuts(steps, plan, self.whole)
        self.stages = [
            self._stage(cut.index, model_py, weights)
            for cut in self.cuts
            if cut.index % mesh.pipeline == self.group
        ]
        self._schedules: dict[Any, Any] = {}
        trained = [n for n, _ in self.whole.named_parameters() if role_of(n) in plan.trained]
        self._copies = Copies(self.cuts, trained, self.mesh)

    def _stage(self, index: int, model_py: Any, weights: Path) -> Stage:
        """A stage with its weights, split and sharded."""
        cut, plan = self.cuts[index], self.plan
        with torch.device("meta"):
            model = model_py.build()
        model_py.load_weights(model, weights)
        prune(model, cut, self.cuts)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(role_of(name) in plan.trained)
        stage = Stage(self.parts, model, cut)
        for parameter in stage.parameters():
            # Master weights in fp32; frozen ones as they are computed with.
            if parameter.is_floating_point():
                dtype = torch.float32 if parameter.requires_grad else self.dtype
                parameter.data = parameter.data.to(dtype)
        if plan.mesh.tensor > 1:
            apart = plan.encoder_tensor < plan.mesh.tensor
            vision = self.mesh["vision"] if apart else self.tensor
            split(stage, self.tensor, vision, sequences=plan.sequence_parallel)
            if apart and sees(cut.steps[0]):
                stage.images = SharedImages(self.mesh["copies"].get_group())
                names = [name for name, _ in stage.model.named_parameters()]
                stage.partial |= {n for n in names if role_of(n) in VISION}
        stage.recomputed = save_less(stage, plan.checkpointing)
        if plan.mesh.data > 1 or self.dtype != torch.float32:
            self._shard(stage)
        return stage.to(self.device)

    def _shard(self, stage: Stage) -> None:
        policy = MixedPrecisionPolicy()
        if self.dtype != torch.float32:
            policy = MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        zero = self.plan.zero
        replicas = self.mesh["replicate", "shard"] if zero == 0 else self.mesh["shard"]
        options: dict[str, Any] = {"mesh": replicas, "mp_policy": policy}
        options["reshard_after_forward"] = not self._keeps_whole
        # FSDP2 shards no numbers: they stay whole, and their gradients are averaged by hand. It
        # would keep a copy of frozen weights that nothing shards.
        options["ignored_params"] = ignored = {
            p for p in stage.parameters() if p.ndim == 0 or (zero < 3 and not p.requires_grad)
        }
        for step in stage.cut.steps:
            if step.block is None:
                continue
            block = stage.model.get_submodule(step.block)
            if all(parameter in ignored for parameter in block.parameters()):
                continue
            fully_shard(block, **options)
            if step.look is not None:
                register_fsdp_forward_method(block, "look")
        apart = [
            block
            for block in reversed(unread(stage.model, stage.cut.steps))
            if not all(parameter in ignored for parameter in block.parameters())
        ]
        for block in apart:
            fully_shard(block, **options)  # a unit of its own is never gathered
        _fetch_nothing_unread(stage)
        sharded: FSDPModule = fully_shard(stage, **options)
        stage.__dict__["set_requires_gradient_sync"] = partial(
            _hold_back, sharded.set_requires_gradient_sync, apart
        )
        if self.plan.mesh.pipeline > 1:
            # A pipeline would keep all that a backward pass gathered, and whole gradients, until
            # the end of the step; the latter is what ZeRO 1 and 0 mean.
            if not self._keeps_whole:
                stage.__dict__["set_reshard_after_backward"] = _as_it_is
            if zero >= 2:
                stage.__dict__["set_requires_gradient_sync"] = _as_it_is

    @property
    def _keeps_whole(self) -> bool:
        """Whether weights stay gathered from a step's first forward pass to its end."""
        return self.plan.zero in (1, 2) or self.looped

    def step(self, rows: Sequence[Row]) -> float:
        """Gradients of the mean loss over the sequences of a step, and that loss. They are added to
        what gradients there are."""
        plan = self.plan
        given = micro_batches(
            self.parts, rows, data=plan.mesh.data, replica=self.replica, size=plan.micro_batch,
            shares=plan.shares,
        )  # fmt: skip
        feed = [{k: self._here(k, v) for k, v in one.items()} for one in given]
        for stage in self.stages:
            stage.feed = feed
        losses = self._piped(feed) if plan.mesh.pipeline > 1 else self._alone(len(feed))
        for stage in self.stages:
            for parameter in stage.parameters():
                _put_together(parameter)
            self._add_shares(stage)
            for parameter in stage.parameters():
                if parameter.ndim == 0 and parameter.requires_grad and plan.mesh.data > 1:
                    self._average(parameter)
        self._copies.add_up(self.stages)
        own = sum((loss.detach().double() for loss in losses), torch.zeros((), dtype=torch.double))
        first = self.tensor.get_local_rank() == 0
        own = own.cpu() / plan.mesh.data if first else torch.zeros(()).double()
        own = own.to(self.device)
        DISTRIBUTED.all_reduce(own)
        return float(own)

    def _add_shares(self, stage: Stage) -> None:
        """Sums gradients of what saw a share of the images or of the tokens on each rank."""
        for name, parameter in stage.model.named_parameters():
            if parameter.grad is not None and name in stage.partial:
                ranks = self.mesh["copies"] if role_of(name) in VISION else self.tensor
                DISTRIBUTED.all_reduce(local_of(parameter.grad), group=ranks.get_group())

    def _average(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        for axis in ("replicate", "shard"):
            DISTRIBUTED.all_reduce(parameter.grad, group=self.mesh[axis].get_group())
        parameter.grad /= self.plan.mesh.data

    def _here(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, self.dtype if name == "images" else value.dtype)

    def _alone(self, count: int) -> list[Tensor]:
        """The micro-batches one after the other. Gradients that are sharded are reduced with each
        of them, others with the last."""
        (stage,) = self.stages
        losses: list[Tensor] = []
        for number in range(count):
            if isinstance(stage, FSDPModule):
                last = number == count - 1
                stage.set_requires_gradient_sync(last or self.plan.zero >= 2)
                stage.set_reshard_after_backward(last or not self._keeps_whole)
            loss = stage(number=torch.tensor([number]))
            loss.backward()
            losses.append(loss)
        return losses

    def _piped(self, feed: Sequence[Data]) -> list[Tensor]:
        schedule = self._schedule(feed)
        numbers = torch.arange(len(feed))
        losses: list[Tensor] = []
        schedule.step(number=numbers, target=numbers, losses=losses, return_outputs=False)
        return losses

    def _schedule(self, feed: Sequence[Data]) -> Any:
        """PyTorch's schedule for micro-batches of these shapes."""
        key = tuple(
            (k, tuple(v.shape)) for k, v in sorted(feed[0].items()) if isinstance(v, Tensor)
        )
        if key not in self._schedules:
            sent = borders(self.parts, self.whole, self.cuts, feed[0], shares=self.plan.shares)
            self._schedules = {key: self._made(sent, len(feed))}
        return self._schedules[key]

    def _made(self, sent: Sequence[dict[str, Tensor]], count: int) -> Any:
        stages: list[Any] = []
        for stage in self.stages:
            index = stage.cut.index
            before = sent[index - 1] if index else {}
            stage.takes = tuple(before)
            stage.fed = frozenset(name for name, one in before.items() if one.requires_grad)
            stage.always = puts_off(self.plan.schedule, self.plan.mesh.pipeline)
            made = PuttingOff(
                stage,
                index,
                len(self.cuts),
                self.device,
                input_args=tuple(_asking(one, stage.answers) for one in before.values()),
                output_args=tuple(_asking(one, stage.asks) for one in sent[index].values()),
                group=self.mesh["pipeline"].get_group(),
            )
            stages.append(made)
        options: dict[str, Any] = {"loss_fn": _handed_on, "scale_grads": False}
        match self.plan.schedule:
            case "gpipe":
                return ScheduleGPipe(stages[0], count, **options)
            case "1f1b":
                return Schedule1F1B(stages[0], count, **options)
            case "interleaved":
                return ScheduleInterleaved1F1B(stages, count, **options)
            case _:
                return ScheduleInterleavedZeroBubble(stages, count, **options)

    def parameters(self) -> dict[str, nn.Parameter]:
        """This rank's parameters by their names in model.py. One that two of its stages read is
        there once for each."""
        return {n: p for stage in self.stages for n, p in stage.model.named_parameters()}


def _fetch_nothing_unread(stage: Stage) -> None:
    """FSDP2 gathers the block before the one that runs backward ahead of time, also where no
    gradient goes there: the first that one reaches is to fetch itself, which is there."""
    steps = zip(stage.cut.steps, stage.cut.reached, strict=True)
    first = next((step.block for step, reached in steps if reached and step.block), None)
    block = None if first is None else stage.model.get_submodule(first)
    if isinstance(block, FSDPModule):
        block.set_modules_to_backward_prefetch([block])


def _as_it_is(*given: Any, **named: Any) -> None:
    """In place of a setting that a pipeline would change."""


def _hold_back(others: Callable[[bool], None], apart: Sequence[Any], sync: bool) -> None:
    """Whether gradients are reduced with the next backward pass. FSDP2 looks for those that it is
    to hold back, and fails on blocks that were never gathered, which have none."""
    others(sync)
    for block in apart:
        block.set_requires_gradient_sync(True)


def _asking(meta: Tensor, asks: bool) -> Tensor:
    return torch.empty_like(meta, requires_grad=asks)


def _handed_on(loss: Tensor, number: Tensor) -> Tensor:
    return loss


def _put_together(parameter: nn.Parameter) -> None:
    """Brings a gradient to where its parameter lies."""
    own: Any = parameter
    grad: Any = parameter.grad
    both = isinstance(grad, DTensor) and isinstance(parameter, DTensor)
    if both and grad.placements != own.placements:
        parameter.grad = grad.redistribute(placements=own.placements)
