"""Reading a prompt and making one more token, on tensors without values: what the eager engine
runs for rows of one length. What it does row by row counts once, with the bytes of all rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from vlmc.analysis.polynomial import Monomial, Polynomial
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
from vlmc.capture.bodies import Vision
from vlmc.capture.graph import Wire
from vlmc.capture.layout import Layout
from vlmc.components.shared.cache import Cache
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
_ANSWER = Polynomial.symbol("answer")
_ANSWERING = {"text": _ANSWER, "sequence": IN_SEQUENCE["sequence"] - _ANSWER}
"""An encoder-decoder's text is a prompt, which its encoder has read, and the decoder's answer."""


def serving_step(arch: Arch, mode: Serving, frames: int) -> Step:
    """What runs for a prompt, or for one more token of each row.

    Raises UsageError for a design that generates nothing and is asked to decode.
    """
    given, serve = _Given(arch, frames), _Serve(arch)
    inputs, run = (given.token, serve.token) if mode == "decode" else (given.prompt, serve.prompt)
    if arch.serving == "cross_attention":
        return Step(CROSS, inputs, run, {})
    if arch.serving == "encoder_decoder":
        meaning = _ANSWERING if mode == "decode" else IN_SEQUENCE
        return Step(ENCODER_DECODER, inputs, run, meaning)
    if arch.serving == "sequence":
        return Step(SEQUENCE, inputs, run, IN_SEQUENCE)
    if mode == "decode":
        raise UsageError(f"{arch.name} answers in one pass: it has no tokens to decode")
    meaning = {**REGIONS, **IN_SEQUENCE}
    return Step(SINGLE, inputs, run, meaning, ("sequence", "visual"))


class _Given:
    """What the engine has: pixels and ids, which token stands where and sees what, caches."""

    def __init__(self, arch: Arch, frames: int) -> None:
        self.serving, self.frames = arch.serving, frames
        self.layout = Layout(arch)

    def prompt(self, sizes: Mapping[str, int]) -> Inputs:
        known = self._extents(sizes)
        batch, text = known["batch"], known["prompt"]
        given = {
            "pixels": self._floats(self.layout.pixels, {**known, "images": known["all_images"]}),
            "ids": _whole(batch, text),
            "last": _whole(batch),
        }
        if self.serving == "cross_attention":
            given["seen"] = _flags(batch, text, known["images"])
        elif self.serving == "single_pass":
            given["visual"] = torch.empty(batch, known["visual"], self.layout.width)
        else:
            given["places"] = _whole(known["all_images"] * self.layout.tokens)
        if self.serving == "encoder_decoder":
            given["start"] = _whole(batch, 1)
        return given

    def token(self, sizes: Mapping[str, int]) -> Inputs:
        known = self._extents(sizes)
        wires = *self.layout.cache("cache", "past"), *self.layout.memory
        given = {wire.name: self._floats(wire, known) for wire in wires}
        given["ids"] = _whole(known["batch"], 1)
        if self.serving == "cross_attention":
            given["seen"] = _flags(known["batch"], 1, known["images"])
        return given

    def _extents(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """What the names of extents are at sizes of a fit; `prompt`: tokens that are read."""
        known = {**sizes, "frames": self.frames}
        if self.serving == "cross_attention":
            known["all_images"] = known["batch"] * known["images"]
            known["visual"] = known["images"] * self.layout.tokens
            known["prompt"], known["past"] = known["text"], known["text"] - 1
        elif self.serving == "encoder_decoder":
            known["prompt"] = known["source"] = known["sequence"]
            known["past"] = known["text"] - 1
        elif self.serving == "single_pass":
            known["prompt"] = known["sequence"] - known["visual"]
        else:
            known["prompt"], known["past"] = known["sequence"], known["sequence"] - 1
        return known

    def _floats(self, wire: Wire, known: Mapping[str, int]) -> Tensor:
        return torch.empty([dim if isinstance(dim, int) else known[dim] for dim in wire.dims])


class _Serve:
    """As `EagerEngine`: images are encoded, prompts read, a token appended to each row."""

    def __init__(self, arch: Arch) -> None:
        self.arch, self.serving = arch, arch.serving
        self.tokens = arch.tokens.per_image

    def prompt(self, model: Any, given: Inputs, recorder: Recorder) -> None:
        with torch.no_grad():
            with recorder.inside("encoder"):
                features = Vision(model, self.arch)(given["pixels"])
            with recorder.inside("language.embedding"):
                if self.serving == "single_pass":
                    _judge(model, given)
                elif self.serving == "cross_attention":
                    self._look(model, given, _paired(features), recorder)
                else:
                    self._read(model, given, features[0])

    def token(self, model: Any, given: Inputs, recorder: Recorder) -> None:
        own, outside = (
            _paired([one for name, one in given.items() if name.startswith(kind)])
            for kind in ("cache.", "memory.")
        )
        cache = Cache(len(own))
        for layer, pair in zip(cache.layers, own, strict=True):
            layer.keys, layer.values = pair
        with torch.no_grad(), recorder.inside("language.embedding"):
            x = model.language.embed(given["ids"])
            if self.serving == "encoder_decoder":
                hidden = model.language.decode(x, outside, None, None, cache)
            elif self.serving == "cross_attention":
                hidden = model.read(x, None, outside, self._keys(given["seen"]), cache)
            else:
                hidden = model.language(x, None, cache)
            model.logits(hidden).float()

    def _read(self, model: Any, given: Inputs, visual: Tensor) -> None:
        """Visual tokens take their places among the words."""
        x = model.language.embed(given["ids"])
        x.flatten(0, 1)[given["places"]] = torch.cat([visual.flatten(0, 1)])
        if self.serving == "sequence":
            _answered(model, model.language(x, None, model.new_cache()), given)
            return
        memory = model.language.memorise(model.language.encode(x, None))
        words = model.language.embed(given["start"])
        hidden = model.language.decode(words, memory, None, None, model.new_cache())
        model.logits(hidden).float()

    def _look(
        self, model: Any, given: Inputs, made: list[tuple[Tensor, Tensor]], recorder: Recorder
    ) -> None:
        """Keys and values of the images of each row are put side by side."""
        batch = len(given["seen"])
        memory: list[tuple[Tensor, Tensor]] = []
        for block, pair in enumerate(made):
            with recorder.inside(f"gated_blocks.{block}"):
                keys, values = (
                    torch.stack([torch.cat([side])]).view(batch, side.shape[1], -1, side.shape[3])
                    for side in pair
                )
            memory.append((keys, values))
        x = model.language.embed(given["ids"])
        seen = self._keys(given["seen"])
        _answered(model, model.read(x, None, memory, seen, model.new_cache()), given)

    def _keys(self, seen: Tensor) -> Tensor:
        """By visual token what is seen by image."""
        return seen.repeat_interleave(self.tokens, dim=-1)[:, None]


def _judge(model: Any, given: Inputs) -> None:
    """Reads words and visual tokens in one pass."""
    ids = given["ids"]
    mask = torch.ones_like(ids)
    words = model.language.embed(ids)
    visual = words.new_zeros(given["visual"].shape)
    visual.copy_(torch.cat([given["visual"]]))
    seen = torch.ones(visual.shape[:2], dtype=torch.bool, device=ids.device).long()
    output = model.head(
        model.read(words, mask, visual, seen), mask, model.language.embedding, None, None
    )
    output.logits.float()


def _answered(model: Any, hidden: Tensor, given: Inputs) -> None:
    """Logits of the last token of each row."""
    last = given["last"][:, None, None].expand(-1, 1, hidden.shape[2])
    model.logits(hidden.gather(1, last)).float()


def _paired(flat: Any) -> list[tuple[Tensor, Tensor]]:
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]


def _whole(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64)


def _flags(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bool)
