"""Fusion, language model and head as steps."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmc.runtime.parallel.chain import Data, State, Step, at, numbered, passed, unit, whole
from vlmc.runtime.parallel.parts import Parts


def word_steps(parts: Parts) -> list[Step]:
    """From visual tokens to the loss."""
    if parts.fusion == "single_stream":
        return _single_stream(parts)
    if parts.target:
        return _encoder_decoder(parts)
    return _decoder(parts)


def context_of(parts: Parts, model: Any, data: Data, dtype: torch.dtype) -> SimpleNamespace:
    """What all layers of a decoder share: who sees whom, and the rotation. Padding stands last, so
    no token sees any and all rows have the same positions: layers save no mask for the backward
    pass, nor distances between tokens for each row."""
    words: Tensor = data["input_ids"]
    positions = torch.arange(words.shape[1], device=words.device)[None]
    where = SimpleNamespace(positions=positions, keys=positions, mask=None, causal=True)
    rotary = None
    if parts.argument("language", "positions") == "rotary":
        rotary = model.language.rotary(positions, dtype)
    return SimpleNamespace(places=where, rotary=rotary)


def bias_of(model: Any, data: Data, side: str) -> Tensor:
    """What all layers of an encoder, or of a decoder, add to their scores: how far words stand
    apart, and who sees whom. One tensor, since each layer saves it for the backward pass."""
    language, mask = model.language, data["attention_mask"]
    words = mask if side == "encoder" else data["labels"]
    place = torch.arange(words.shape[1], device=mask.device)[None]
    if side == "encoder":
        bias, hidden = language.encoder_bias(place, place), ~mask[:, None, None, :].bool()
    else:
        bias = language.decoder_bias(place, place)
        hidden = place[:, None, None, :] > place[:, None, :, None]
    return bias.masked_fill(hidden, float("-inf"))


def _filled(words: Tensor, visual: Tensor, data: Data) -> Tensor:
    """Words with visual tokens in their places. Images beyond the places are there for the shape
    alone; without any place the visual tokens get a gradient of zeros."""
    return words.masked_scatter(data["places"][..., None], visual.to(words.dtype))


def _gated(self: Any, x: Tensor, visual: Tensor, seen: Tensor, own: Tensor) -> Tensor:
    """`own`: what is seen by the tokens that `x` has, where ranks share them out; attention, which
    gathers all of them, is given what all see."""
    if own is not seen:
        self.attention.seen = seen
    return self.forward(x, self.attention.key_value(visual), own)


def _decoder(parts: Parts) -> list[Step]:
    crossing = parts.fusion == "gated_cross_attention"

    def project(model: Any, state: State, data: Data) -> State:
        visual = state["visual"]
        if parts.argument("fusion", "visual_projection"):
            visual = model.visual_projection(visual)
        rows = data["input_ids"].shape[0]
        return passed(state, visual=visual.reshape(rows, -1, visual.shape[-1]))

    def embed(model: Any, state: State, data: Data) -> State:
        x = model.language.embed(data["input_ids"])
        if not crossing:
            x = _filled(x, state["visual"], data)
            state = passed(state, "visual")
        if parts.argument("language", "positions") == "learned":
            where = data["context"](x.dtype).places.positions
            offset = parts.argument("language", "position_offset")
            x = x + model.language.position_embedding(where + offset)
        return passed(state, x=data["sequences"].share(x))

    layers: int = parts.argument("language", "layers")
    every: int = parts.argument("fusion", "every") if crossing else 1

    def gated(index: int, model: Any, state: State, data: Data) -> State:
        seen: Tensor = data["seen"]
        tokens = state["visual"].shape[1] // seen.shape[2]
        seen = seen.repeat_interleave(tokens, dim=-1)[:, None]
        own = data["sequences"].share(seen, dim=2)
        x = model.gated_blocks[index].look(state["x"], state["visual"], seen, own)
        gone = ("visual",) if (index + 1) * every >= layers else ()
        return passed(state, *gone, x=x)

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        context = data["context"](state["x"].dtype)
        return passed(state, x=model.language.layer(index, state["x"], context, None))

    def norm(model: Any, state: State, data: Data) -> State:
        return passed(state, x=model.language.norm(state["x"]))

    def head(model: Any, state: State, data: Data) -> State:
        logits = model.logits(data["sequences"].whole(state["x"]))
        loss = _summed(logits[:, :-1], data["labels"][:, 1:], data)
        return {"loss": loss}

    embeddings = ("language.embedding", "language.added_embedding")
    steps = [whole("fusion", project, "visual_projection")] if crossing else []
    steps.append(whole("language.begin", embed, *embeddings, "language.position_embedding"))
    for index in range(layers):
        if crossing and index % every == 0:
            number = index // every
            steps.append(unit(f"gated_blocks.{number}", at(gated, number), _gated))
        steps.append(unit(f"language.layers.{index}", at(layer, index)))
    tied = embeddings if parts.argument("head", "tied") else ()
    steps.append(whole("language.end", norm, "language.norm"))
    return [*steps, whole("head", head, "head", *tied)]


def _single_stream(parts: Parts) -> list[Step]:
    def mask_of(data: Data) -> Tensor:
        return torch.cat((data["attention_mask"], data["visual_mask"]), dim=1)

    def place(model: Any, state: State, data: Data) -> State:
        visual = state["visual"]
        visual = visual.reshape(data["input_ids"].shape[0], -1, visual.shape[-1])
        return passed(state, visual=model.place(visual, None, None))

    def embed(model: Any, state: State, data: Data) -> State:
        words, visual = model.language.embed(data["input_ids"]), state["visual"]
        x = model.language.embedding_norm(torch.cat((words, visual), dim=1))
        return passed(state, "visual", x=data["sequences"].share(x))

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        mask = mask_of(data)[:, None, None, :].bool()
        return passed(state, x=model.language.layers[index](state["x"], mask=mask))

    def head(model: Any, state: State, data: Data) -> State:
        known = {
            "hidden": data["sequences"].whole(state["x"]),
            "text_mask": data["attention_mask"],
            "embedding": model.language.embedding,
        }
        taken = inspect.signature(model.head.forward).parameters
        logits = model.head(**{name: known[name] for name in known if name in taken}).logits
        labels: Tensor = data["labels"]
        if labels.is_floating_point():
            given = F.kl_div(F.log_softmax(logits, dim=-1), labels, reduction="sum")
            return {"loss": given / data["total"]}
        if labels.ndim == 2:  # words of the text; visual tokens are not asked for
            logits = logits[:, : labels.shape[1]]
        return {"loss": _summed(logits, labels, data)}

    first = ("embedding", "position_embedding", "token_type_embedding", "embedding_norm")
    count = parts.argument("language", "layers")
    tied = ("language.embedding",) if parts.argument("head", "tied") else ()
    return [
        whole("fusion", place, "visual_type_embedding", "visual_position_embedding"),
        whole("language.begin", embed, *(f"language.{name}" for name in first)),
        *numbered(count, lambda n: unit(f"language.layers.{n}", at(layer, n))),
        whole("head", head, "head", *tied),
    ]


def _remembering(self: Any, x: Tensor, encoded: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    memory = self.cross.key_value(encoded)
    return self.forward(x, mask=mask, memory=memory, memory_mask=seen)


def _encoder_decoder(parts: Parts) -> list[Step]:
    def embed(model: Any, state: State, data: Data) -> State:
        x = _filled(model.language.embed(data["input_ids"]), state["visual"], data)
        return passed(state, "visual", x=data["sequences"].share(x))

    def encode(index: int, model: Any, state: State, data: Data) -> State:
        bias = data["bias"]("encoder")
        return passed(state, x=model.language.encoder_layers[index](state["x"], mask=bias))

    def turn(model: Any, state: State, data: Data) -> State:
        encoded = data["sequences"].whole(model.language.encoder_norm(state["x"]))
        labels: Tensor = data["labels"]
        start = torch.full_like(labels[:, :1], parts.argument("language", "start_token"))
        shifted = torch.cat((start, labels[:, :-1]), dim=1)
        shifted = shifted.masked_fill(shifted == -100, parts.argument("language", "pad_token"))
        x = data["sequences"].share(model.language.embed(shifted))
        return passed(state, encoded=encoded, x=x)

    def decode(index: int, model: Any, state: State, data: Data) -> State:
        bias = data["bias"]("decoder")
        seen = data["attention_mask"][:, None, None, :].bool()
        block = model.language.decoder_layers[index]
        gone = ("encoded",) if index + 1 == parts.argument("language", "decoder_layers") else ()
        return passed(state, *gone, x=block.look(state["x"], state["encoded"], bias, seen))

    def norm(model: Any, state: State, data: Data) -> State:
        return passed(state, x=model.language.decoder_norm(state["x"]))

    def head(model: Any, state: State, data: Data) -> State:
        logits = model.logits(data["sequences"].whole(state["x"]))
        return {"loss": _summed(logits, data["labels"], data)}

    def encoder_layer(n: int) -> Step:
        path = f"language.encoder_layers.{n}"
        return unit(path, at(encode, n), None, "language.encoder_bias")

    def decoder_layer(n: int) -> Step:
        path = f"language.decoder_layers.{n}"
        return unit(path, at(decode, n), _remembering, "language.decoder_bias")

    word = "language.embedding"
    tied = (word,) if parts.argument("head", "tied") else ()
    return [
        whole("language.begin", embed, word),
        *numbered(parts.argument("language", "encoder_layers"), encoder_layer),
        whole("language.between", turn, "language.encoder_norm", word),
        *numbered(parts.argument("language", "decoder_layers"), decoder_layer),
        whole("language.end", norm, "language.decoder_norm"),
        whole("head", head, "head", *tied),
    ]


def _summed(logits: Tensor, labels: Tensor, data: Data) -> Tensor:
    """Cross-entropy as this micro-batch's share of the mean over the whole step."""
    return (
        F.cross_entropy(
            logits.float().flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum"
        )
        / data["total"]
    )
