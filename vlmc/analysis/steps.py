"""A training step of each design, on tensors without values.

The model's own forward pass compares placeholders with images, for which it needs values; here its
parts are called in the same order without that comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmc.analysis.polynomial import Monomial, Polynomial
from vlmc.analysis.trace import Recorder
from vlmc.components.shared.output import next_token_loss, token_loss
from vlmc.ir import Arch

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """How to run a step at given sizes, and of which monomials its costs consist."""

    basis: tuple[Monomial, ...]
    inputs: Callable[[Mapping[str, int]], Inputs]
    run: Callable[[Any, Inputs, Recorder], Tensor | None]
    """The loss of a model; None of one that serves."""
    meaning: Mapping[str, Polynomial]
    """What symbols of `basis` are in those of `Sizes`."""
    above: tuple[str, str] | None = None
    """Two sizes of which the first is larger."""


def monomials(*written: str) -> tuple[Monomial, ...]:
    """From `batch sequence sequence`: batch times the square of sequence."""
    return tuple(
        tuple(sorted((name, one.split().count(name)) for name in set(one.split())))
        for one in written
    )


SEQUENCE = monomials(
    "",
    "all_images",
    "batch",
    "sequence",
    "batch sequence",
    "sequence sequence",
    "batch sequence sequence",
)
CROSS = monomials(
    "",
    "batch",
    "images",
    "text",
    "text text",
    "batch images",
    "batch text",
    "batch text images",
    "batch text text",
)
ENCODER_DECODER = monomials(
    "",
    "all_images",
    "batch",
    "sequence",
    "text",
    "batch sequence",
    "batch text",
    "sequence sequence",
    "sequence text",
    "text text",
    "batch sequence sequence",
    "batch sequence text",
    "batch text text",
)
SINGLE = monomials(
    "",
    "batch",
    "sequence",
    "visual",
    "batch sequence",
    "batch visual",
    "sequence sequence",
    "batch sequence sequence",
)

_IMAGES = Polynomial.symbol("images")
_VISUAL = _IMAGES * Polynomial.symbol("tokens")
_SEQUENCE = Polynomial.symbol("text") + _VISUAL
IN_SEQUENCE = {"all_images": Polynomial.symbol("batch") * _IMAGES, "sequence": _SEQUENCE}
REGIONS = {"visual": _VISUAL, "sequence": _SEQUENCE}


def training_step(arch: Arch, frames: int) -> Step:
    """The step of a design, by how vision meets language in it."""
    given = _Inputs(arch, frames)
    if arch.serving == "cross_attention":
        return Step(CROSS, given.cross_attention, _cross_attention, {})
    if arch.serving == "encoder_decoder":
        return Step(ENCODER_DECODER, given.encoder_decoder, _encoder_decoder, IN_SEQUENCE)
    if arch.serving == "single_pass":
        return Step(SINGLE, given.single_pass, _single_pass, REGIONS, ("sequence", "visual"))
    return Step(SEQUENCE, given.sequence, _sequence, IN_SEQUENCE)


class _Inputs:
    def __init__(self, arch: Arch, frames: int) -> None:
        self.arch = arch
        self.pixels = arch.inputs[0].type.dims[1:]
        if len(self.pixels) == 4:  # videos; a still image needs no extent of frames
            self.pixels = self.pixels[1:] if frames == 1 else (frames, *self.pixels[1:])

    def _pixels(self, *images: int) -> Tensor:
        return torch.empty(*images, *(int(dim) for dim in self.pixels))

    def sequence(self, sizes: Mapping[str, int]) -> Inputs:
        ids = torch.zeros(sizes["batch"], sizes["sequence"], dtype=torch.long)
        return {"ids": ids, "pixels": self._pixels(sizes["all_images"]), "labels": ids.clone()}

    def cross_attention(self, sizes: Mapping[str, int]) -> Inputs:
        batch, text, images = sizes["batch"], sizes["text"], sizes["images"]
        ids = torch.zeros(batch, text, dtype=torch.long)
        seen = torch.zeros(batch, text, images, dtype=torch.bool)
        return {
            "ids": ids,
            "pixels": self._pixels(batch, images),
            "labels": ids.clone(),
            "seen": seen,
        }

    def encoder_decoder(self, sizes: Mapping[str, int]) -> Inputs:
        labels = torch.zeros(sizes["batch"], sizes["text"], dtype=torch.long)
        return {**self.sequence(sizes), "labels": labels}

    def single_pass(self, sizes: Mapping[str, int]) -> Inputs:
        batch, visual = sizes["batch"], sizes["visual"]
        text = sizes["sequence"] - visual
        assert text > 0, "single-pass designs are sampled with more words than regions"
        classes = self.arch.outputs[0].type.dims[-1]
        if self.arch.node("head").kind == "masked_lm":
            labels = torch.zeros(batch, sizes["sequence"], dtype=torch.long)
        else:
            labels = torch.empty(batch, int(classes))
        seen = torch.empty(batch, visual, *(int(dim) for dim in self.pixels[1:]))
        ids = torch.zeros(batch, text, dtype=torch.long)
        return {"ids": ids, "pixels": seen, "labels": labels}


def _filled(model: Any, given: Inputs, recorder: Recorder) -> Tensor:
    """Embeddings with visual tokens in their places."""
    words = model.language.embed(given["ids"])
    features = model.encode_images(given["pixels"])
    with recorder.inside("language.embedding"):
        places = (given["ids"] == model.image_token)[..., None]
        return words.masked_scatter(places, features.to(words.dtype))


def _sequence(model: Any, given: Inputs, recorder: Recorder) -> Tensor:
    x = _filled(model, given, recorder)
    logits = model.logits(model.language(x, None, None))
    with recorder.inside("head"):
        return next_token_loss(logits, given["labels"])


def _encoder_decoder(model: Any, given: Inputs, recorder: Recorder) -> Tensor:
    x = _filled(model, given, recorder)
    with recorder.inside("language.embedding"):
        target = model.language.begin(given["labels"], x)
    hidden = model.language(x, None, target)
    logits = model.logits(hidden)
    with recorder.inside("head"):
        return token_loss(logits, given["labels"])


def _cross_attention(model: Any, given: Inputs, recorder: Recorder) -> Tensor:
    memory, seen = model.look(given["ids"], given["pixels"], given["seen"], None)
    with recorder.inside("language.embedding"):
        x = model.language.embed(given["ids"])
    logits = model.logits(model.read(x, None, memory, seen, None))
    with recorder.inside("head"):
        return next_token_loss(logits, given["labels"])


def _single_pass(model: Any, given: Inputs, recorder: Recorder) -> Tensor:
    key = "visual_embeds" if given["pixels"].dim() == 3 else "pixel_values"
    output = model(given["ids"], labels=given["labels"], **{key: given["pixels"]})
    return output.loss
