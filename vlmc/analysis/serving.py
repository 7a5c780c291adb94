"""Reading a prompt and making one more token, on tensors without values: the stages that engines
run, with a cache of fixed size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlmc.analysis.polynomial import Monomial
from vlmc.analysis.steps import (
    CROSS,
    ENCODER_DECODER,
    IN_SEQUENCE,
    REGIONS,
    SEQUENCE,
    Inputs,
    Step,
    monomials,
)
from vlmc.analysis.trace import Recorder
from vlmc.capture.graph import Stage, Wire
from vlmc.capture.stages import stages
from vlmc.diagnostics import UsageError
from vlmc.ir import Arch

Serving = Literal["prefill", "decode"]

SINGLE: tuple[Monomial, ...] = monomials(
    "",
    "all_images",
    "batch",
    "sequence",
    "visual",
    "batch sequence",
    "batch visual",
    "sequence sequence",
    "batch sequence sequence",
)


def serving_step(arch: Arch, model: nn.Module, mode: Serving, frames: int) -> Step:
    """The stages that run for a prompt, or for one more token of each row.

    Raises UsageError for a design that generates nothing and is asked to decode.
    """
    names = {"decode": ("decode",), "prefill": ("vision", "embed", "encoder", "prefill", "model")}
    chosen = [one for one in stages(arch, model, "static") if one.name in names[mode]]
    if not chosen:
        raise UsageError(f"{arch.name} answers in one pass: it has no tokens to decode")
    run = _Run(arch, chosen, frames)
    if arch.serving == "cross_attention":
        return Step(CROSS, run.inputs, run.run, {})
    if arch.serving == "encoder_decoder":
        return Step(ENCODER_DECODER, run.inputs, run.run, IN_SEQUENCE)
    if arch.serving == "single_pass":
        meaning = {**REGIONS, **IN_SEQUENCE}
        return Step(SINGLE, run.inputs, run.run, meaning, ("sequence", "visual"))
    return Step(SEQUENCE, run.inputs, run.run, IN_SEQUENCE)


class _Run:
    def __init__(self, arch: Arch, chosen: list[Stage], frames: int) -> None:
        self.arch, self.chosen, self.frames = arch, chosen, frames

    def inputs(self, sizes: Mapping[str, int]) -> Inputs:
        return {
            f"{stage.name}.{wire.name}": _tensor(wire, self._extents(stage, sizes))
            for stage in self.chosen
            for wire in stage.inputs
        }

    def _extents(self, stage: Stage, sizes: Mapping[str, int]) -> dict[str, int]:
        """What the names of a stage's extents are at sizes of a fit."""
        known = dict(sizes)
        if self.arch.serving == "cross_attention":
            known["all_images"] = known["batch"] * known["images"]
            known["visual"] = known["images"] * self.arch.tokens.per_image
            known["slots"] = known["text"]
        elif self.arch.serving == "encoder_decoder":
            known["source"] = known["sequence"]
            known["slots"] = known["text"]
            if stage.name == "embed":
                known["text"] = known["sequence"]
        elif self.arch.serving == "single_pass":
            known["text"] = known["sequence"] - known["visual"]
        else:
            known["text"] = known["slots"] = known["sequence"]
        if stage.name == "vision":
            known["images"] = known["all_images"]
        return {**known, "frames": self.frames}

    def run(self, model: Any, given: Inputs, recorder: Recorder) -> Tensor | None:
        for stage in self.chosen:
            with torch.no_grad(), recorder.inside(_OWNERS[stage.name]):
                stage.body(*(given[f"{stage.name}.{wire.name}"] for wire in stage.inputs))
        return None


_OWNERS = {
    "vision": "encoder",
    "embed": "language.embedding",
    "encoder": "language.embedding",
    "prefill": "language.embedding",
    "decode": "language.embedding",
    "model": "language.embedding",
}
"""What glue before a stage's first module belongs to."""


def _tensor(wire: Wire, extents: Mapping[str, int]) -> Tensor:
    shape = [dim if isinstance(dim, int) else extents[dim] for dim in wire.dims]
    formats = {"float": torch.get_default_dtype(), "int": torch.int64, "bool": torch.bool}
    return torch.empty(shape, dtype=formats[wire.number])
