"""Encoders and adapters as steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmc.runtime.parallel.chain import Data, State, Step, at, numbered, passed, unit, whole
from vlmc.runtime.parallel.parts import Parts


def vision_steps(parts: Parts) -> list[Step]:
    """From pixels (or region features) to visual tokens [images, tokens, width] in `visual`."""
    made = {"vit": _vit, "nfnet": _nfnet}.get(parts.parts["encoder"].kind, _given)
    adapter = {"perceiver_resampler": _resampler, "qformer": _qformer}
    return [*made(parts), *adapter.get(parts.parts["adapter"].kind, _adapter)(parts)]


def _stills(parts: Parts, images: Tensor) -> Tensor:
    """Images [n, 3, h, w] of what may be videos [n, frames, 3, h, w]."""
    if parts.argument("encoder", "frames") == 1:
        return images
    return (images[:, None] if images.ndim == 4 else images).flatten(0, 1)


def _joined(x: Tensor, images: Tensor) -> Tensor:
    """Features of whole videos, from those of their frames."""
    return x.reshape(images.shape[0], -1, x.shape[-1])


def _vit(parts: Parts) -> list[Step]:
    values = parts.parts["encoder"].arguments
    chosen: tuple[int, ...] = tuple(values["feature_layers"])
    several = len(chosen) > 1

    def kept(index: int, x: Tensor) -> State:
        return {f"kept.{index}": x} if several and index in chosen else {}

    def start(model: Any, state: State, data: Data) -> State:
        encoder = model.encoder
        images = _stills(parts, data["images"])
        x = encoder.patch_embedding(images.to(encoder.patch_embedding.weight.dtype))
        x = x.flatten(2).transpose(1, 2)
        if values["class_token"]:
            x = torch.cat((encoder.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + encoder.position_embedding
        if values["pre_norm"]:
            x = encoder.pre_norm(x)
        return passed(state, image=x, **kept(0, x))

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        x = model.encoder.layers[index](state["image"])
        return passed(state, image=x, **kept(index + 1, x))

    def end(model: Any, state: State, data: Data) -> State:
        normed = values["norm_features"] and values["post_norm"]
        found = [state[f"kept.{index}"] for index in chosen] if several else [state["image"]]
        found = [model.encoder.post_norm(x) for x in found] if normed else found
        x = torch.cat(found, dim=-1) if several else found[0]
        x = x[:, 1:] if values["drop_class_token"] else x
        names = [f"kept.{index}" for index in chosen]
        return passed(state, "image", *names, features=_joined(x, data["images"]))

    first = ("patch_embedding", "class_embedding", "position_embedding", "pre_norm")
    return [
        whole("encoder.begin", start, *(f"encoder.{name}" for name in first)),
        *numbered(max(chosen), lambda n: unit(f"encoder.layers.{n}", at(layer, n))),
        whole("encoder.end", end, "encoder.post_norm"),
    ]


def _nfnet(parts: Parts) -> list[Step]:
    def start(model: Any, state: State, data: Data) -> State:
        encoder = model.encoder
        images = _stills(parts, data["images"])
        x = encoder.stem[0](images.to(encoder.stem[0].weight.dtype))
        for layer in encoder.stem[1:]:
            x = layer(encoder.activation(x) * parts.argument("encoder", "gamma"))
        return passed(state, image=x)

    def block(index: int, model: Any, state: State, data: Data) -> State:
        return passed(state, image=model.encoder.blocks[index](state["image"]))

    def end(model: Any, state: State, data: Data) -> State:
        encoder = model.encoder
        x = encoder.activation(encoder.final(state["image"])) * parts.argument("encoder", "gamma")
        x = x.flatten(2).transpose(1, 2)
        return passed(state, "image", features=_joined(x, data["images"]))

    return [
        whole("encoder.begin", start, "encoder.stem"),
        *numbered(
            sum(parts.argument("encoder", "depths")),
            lambda n: unit(f"encoder.blocks.{n}", at(block, n)),
        ),
        whole("encoder.end", end, "encoder.final"),
    ]


def _given(parts: Parts) -> list[Step]:
    def start(model: Any, state: State, data: Data) -> State:
        return passed(state, features=data["images"])

    return [whole("encoder", start)]


def _adapter(parts: Parts) -> list[Step]:
    def run(model: Any, state: State, data: Data) -> State:
        return passed(state, "features", visual=model.adapter(state["features"]))

    return [whole("adapter", run, "adapter")]


def _resampler(parts: Parts) -> list[Step]:
    values = parts.parts["adapter"].arguments

    def start(model: Any, state: State, data: Data) -> State:
        adapter, features = model.adapter, state["features"]
        if values["source_width"] != values["width"]:
            features = adapter.projection(features)
        if values["frames"] > 1:
            shown = features.shape[1] // values["source_tokens"]
            times = adapter.times(adapter.time_embedding, shown)
            features = features + times.repeat_interleave(values["source_tokens"], dim=0)
        latents = adapter.latents.expand(features.shape[0], -1, -1)
        return passed(state, features=features, latents=latents)

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        latents = model.adapter.layers[index](state["latents"], state["features"])
        gone = ("features",) if index + 1 == values["layers"] else ()
        return passed(state, *gone, latents=latents)

    def end(model: Any, state: State, data: Data) -> State:
        latents = state["latents"]
        visual = model.adapter.norm(latents) if values["final_norm"] else latents
        return passed(state, "latents", visual=visual)

    first = ("latents", "projection", "time_embedding")
    return [
        whole("adapter.begin", start, *(f"adapter.{name}" for name in first)),
        *numbered(values["layers"], lambda n: unit(f"adapter.layers.{n}", at(layer, n))),
        whole("adapter.end", end, "adapter.norm"),
    ]


def _queried(self: Any, x: Tensor, features: Tensor) -> Tensor:
    return self.forward(x, memory=self.cross.key_value(features))


def _qformer(parts: Parts) -> list[Step]:
    values = parts.parts["adapter"].arguments

    def crosses(index: int) -> bool:
        return index % values["cross_attention_every"] == 0

    last = max(filter(crosses, range(values["layers"])))

    def start(model: Any, state: State, data: Data) -> State:
        adapter = model.adapter
        features = state["features"].to(adapter.queries.dtype)
        x = adapter.norm(adapter.queries).expand(features.shape[0], -1, -1)
        return passed(state, features=features, latents=x)

    def layer(index: int, model: Any, state: State, data: Data) -> State:
        block, x = model.adapter.layers[index], state["latents"]
        x = block.look(x, state["features"]) if crosses(index) else block(x, memory=None)
        gone = ("features",) if index == last else ()
        return passed(state, *gone, latents=x)

    def end(model: Any, state: State, data: Data) -> State:
        visual = model.adapter.projection(state["latents"])
        return passed(state, "latents", visual=visual)

    return [
        whole("adapter.begin", start, "adapter.queries", "adapter.norm"),
        *numbered(
            values["layers"],
            lambda n: unit(f"adapter.layers.{n}", at(layer, n), _queried if crosses(n) else None),
        ),
        whole("adapter.end", end, "adapter.projection"),
    ]
