"""How each way of serving divides a model's work into stages.

Three sets for what decodes: `growing` takes the cache and gives it back one token longer, as ONNX
clients expect; `static` writes into caches of fixed size, so that a step allocates nothing; `paged`
writes into blocks of a pool that all generations share. The last is these stages alone, since all
others are those of `static`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlmc.capture.graph import Stage, Wire
from vlmc.components.shared.cache import Cache
from vlmc.components.shared.paged_cache import PagedCache
from vlmc.components.shared.static_cache import StaticCache
from vlmc.ir import Arch

CacheKind = Literal["growing", "static", "paged"]

BLOCK = 16
"""Tokens of a block of a paged cache."""

Pairs = list[tuple[Tensor, Tensor]]


def stages(arch: Arch, model: Any, cache: CacheKind) -> list[Stage]:
    """The stages of `model`, the module of `arch`, in the order in which they run."""
    layout = Layout(arch)
    first = [
        Stage(
            name="vision",
            body=_Vision(model, arch),
            inputs=(layout.pixels,),
            outputs=layout.features,
        ),
    ]
    if arch.serving == "single_pass":
        return [*first, _single_pass(arch, model)]
    first.append(
        Stage(
            name="embed",
            body=_Embed(model),
            inputs=(Wire("input_ids", ("batch", "text"), "int"),),
            outputs=(Wire("inputs_embeds", ("batch", "text", layout.width)),),
        )
    )
    if arch.serving == "encoder_decoder":
        first.append(
            Stage(
                name="encoder",
                body=_Encoder(model),
                inputs=(
                    Wire("inputs_embeds", ("batch", "source", layout.width)),
                    Wire("attention_mask", ("batch", "source"), "int"),
                ),
                outputs=layout.memory,
            )
        )
    if cache == "growing":
        return [*first, _growing(arch, model, layout)]
    if cache == "paged":
        return _paged(arch, model, layout)
    return [*first, *_static(arch, model, layout)]


class Layout:
    """Names and extents of what the stages of a design hand to each other."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.pixels = _pixels(arch)
        language = arch.node("language").arguments
        self.width = _number(language["width"])
        self.heads = _number(language.get("kv_heads", language["heads"]))
        self.head_dim = _number(language.get("head_dim", self.width // self.heads))
        decoder = language["decoder_layers"] if "decoder_layers" in language else language["layers"]
        self.layers = _number(decoder)
        self.capacity = capacity(arch)
        visual = arch.node("adapter").outputs[0].type.dims
        self.features: tuple[Wire, ...] = (Wire("image_features", visual),)
        self.memory: tuple[Wire, ...] = ()
        self.tokens = arch.tokens.per_image
        if arch.serving == "cross_attention":
            fusion = arch.node("fusion").arguments
            own = (_number(fusion["heads"]), self.tokens, _number(fusion["head_dim"]))
            blocks = _number(fusion["blocks"])
            self.features = _pairs("memory", blocks, ("images", *own))
            keys: Wire = Wire("", ("batch", own[0], "visual", own[2]))
            self.memory = _pairs("memory", blocks, keys.dims)
        elif arch.serving == "encoder_decoder":
            dims = ("batch", self.heads, "source", self.head_dim)
            self.memory = _pairs("memory", self.layers, dims)

    def cache(self, prefix: str, extent: str | int, *, written: bool = False) -> tuple[Wire, ...]:
        """Keys and values of every layer, `extent` tokens long."""
        dims = ("batch", self.heads, extent, self.head_dim)
        return _pairs(prefix, self.layers, dims, written=written)

    @property
    def outside(self) -> tuple[Wire, ...]:
        """What a decoder reads beside its own sequence."""
        if self.arch.serving == "cross_attention":
            return (*self.memory, Wire("seen", ("batch", "text", "images"), "bool"))
        if self.arch.serving == "encoder_decoder":
            return (*self.memory, Wire("memory_mask", ("batch", "source"), "int"))
        return ()


def capacity(arch: Arch) -> int:
    """Slots of a static cache: the longest sequence of the token budget and room for one more
    token, a multiple of 16."""
    longest = arch.tokens.text if arch.serving == "encoder_decoder" else arch.tokens.sequence
    return -(-(longest + 1) // 16) * 16


def _growing(arch: Arch, model: Any, layout: Layout) -> Stage:
    own = (
        Wire("inputs_embeds", ("batch", "text", layout.width)),
        Wire("attention_mask", ("batch", "total"), "int"),
    )
    return Stage(
        name="decoder",
        body=_Growing(model, arch, layout),
        inputs=(*own, *layout.outside, *layout.cache("past_key_values", "past")),
        outputs=(_logits(arch), *layout.cache("present", "total")),
    )


def _static(arch: Arch, model: Any, layout: Layout) -> list[Stage]:
    cache = layout.cache("cache", layout.capacity, written=True)
    decode = Stage(
        name="decode",
        body=_Step(model, arch, layout),
        inputs=(*_step(layout), *cache),
        outputs=(_logits(arch),),
    )
    single = Stage(
        name="decode_one",
        body=_Step(model, arch, layout),
        inputs=tuple(_of_one(wire) for wire in decode.inputs),
        outputs=tuple(_of_one(wire) for wire in decode.outputs),
    )
    if arch.serving == "encoder_decoder":
        return [decode, single]
    prefill = Stage(
        name="prefill",
        body=_Prefill(model, arch, layout),
        inputs=(*_begin(layout), *cache),
        outputs=(_logits(arch),),
    )
    return [prefill, decode, single]


def _paged(arch: Arch, model: Any, layout: Layout) -> list[Stage]:
    block = ("pool", layout.heads, BLOCK, layout.head_dim)
    pools = _pairs("pool", layout.layers, block, written=True)
    table = Wire("table", ("batch", layout.capacity // BLOCK), "int")
    decode = Stage(
        name="paged_decode",
        body=_PagedStep(model, arch, layout),
        inputs=(*_step(layout), table, *pools),
        outputs=(_logits(arch),),
    )
    if arch.serving == "encoder_decoder":
        return [decode]
    prefill = Stage(
        name="paged_prefill",
        body=_PagedPrefill(model, arch, layout),
        inputs=(*_begin(layout), table, *pools),
        outputs=(_logits(arch),),
    )
    return [prefill, decode]


def _begin(layout: Layout) -> tuple[Wire, ...]:
    """What reading a prompt takes beside its cache."""
    return (
        Wire("inputs_embeds", ("batch", "text", layout.width)),
        Wire("last", ("batch",), "int"),
        *layout.outside,
    )


def _step(layout: Layout) -> tuple[Wire, ...]:
    """What a step takes beside its cache."""
    return (
        Wire("input_ids", ("batch", 1), "int"),
        Wire("positions", ("batch", 1), "int"),
        Wire("slots", ("slots",), "int"),
        *(_of_a_step(wire) for wire in layout.outside),
    )


def _of_a_step(wire: Wire) -> Wire:
    return Wire(wire.name, tuple(1 if d == "text" else d for d in wire.dims), wire.number)


def _of_one(wire: Wire) -> Wire:
    dims = tuple(1 if dim == "batch" else dim for dim in wire.dims)
    return Wire(wire.name, dims, wire.number, wire.written)


def _single_pass(arch: Arch, model: Any) -> Stage:
    visual = arch.node("adapter").outputs[0].type.dims
    return Stage(
        name="model",
        body=_SinglePass(model),
        inputs=(
            Wire("input_ids", ("batch", "text"), "int"),
            Wire("attention_mask", ("batch", "text"), "int"),
            Wire("image_features", ("batch", "visual", visual[-1])),
            Wire("visual_mask", ("batch", "visual"), "int"),
        ),
        outputs=_judgements(arch),
    )


def _judgements(arch: Arch) -> tuple[Wire, ...]:
    dims = arch.outputs[0].type.dims
    if arch.node("head").kind == "masked_lm":
        own = Wire("logits", ("batch", "sequence", dims[-1]))
        return (own, Wire("seq_relationship_logits", ("batch", 2)))
    return (Wire("logits", ("batch", dims[-1])),)


def _logits(arch: Arch) -> Wire:
    return Wire("logits", ("batch", 1, arch.outputs[0].type.dims[-1]))


def _pixels(arch: Arch) -> Wire:
    encoder = arch.node("encoder")
    port, frames = encoder.inputs[0], encoder.arguments.get("frames", 1)
    if not isinstance(frames, int) or frames == 1:
        return Wire(port.name, port.type.dims)
    images, _, *rest = port.type.dims  # a still is a video of one frame
    return Wire(port.name, (images, "frames", *rest))


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _pairs(
    prefix: str, layers: int, dims: Sequence[int | str], *, written: bool = False
) -> tuple[Wire, ...]:
    return tuple(
        Wire(f"{prefix}.{index}.{name}", tuple(dims), written=written)
        for index in range(layers)
        for name in ("key", "value")
    )


def _paired(flat: Sequence[Tensor]) -> Pairs:
    return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]


class _Vision(nn.Module):
    """Encoder and adapter, and whatever follows from an image alone."""

    def __init__(self, model: Any, arch: Arch) -> None:
        super().__init__()
        self.model = model
        self.serving = arch.serving

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self.serving == "cross_attention":
            visual = self.model.encode_images(pixels[:, None]).flatten(1, 2)
            return tuple(one for pair in self.model.memorise(visual) for one in pair)
        visual = self.model.encode_images(pixels)
        if self.serving == "single_pass":
            visual = self.model.place(visual, None, None)
        return (visual,)


class _Embed(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.model.language.embed(input_ids),)


class _Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        language = self.model.language
        memory = language.memorise(language.encode(inputs_embeds, attention_mask))
        return tuple(one for pair in memory for one in pair)


class _Reader(nn.Module):
    """What prefill and decoding share: the language model, and what it reads from outside."""

    def __init__(self, model: Any, arch: Arch, layout: Layout) -> None:
        super().__init__()
        self.model = model
        self.serving = arch.serving
        self.tokens = layout.tokens
        self.outside = len(layout.outside)

    def read(self, x: Tensor, mask: Tensor | None, rest: Sequence[Tensor], cache: Any) -> Tensor:
        """Hidden states of embeddings [batch, text, width]; `rest` begins with what is outside."""
        language = self.model.language
        if self.serving == "sequence":
            return language(x, mask, cache)
        memory = _paired(rest[: self.outside - 1])
        extra = rest[self.outside - 1]
        if self.serving == "encoder_decoder":
            return language.decode(x, memory, extra, mask, cache)
        seen = extra.repeat_interleave(self.tokens, dim=-1)[:, None]
        return self.model.read(x, mask, memory, seen, cache)


class _Growing(_Reader):
    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        past = _paired(rest[self.outside :])
        cache = Cache(len(past))
        for layer, (keys, values) in zip(cache.layers, past, strict=True):
            layer.keys, layer.values = keys, values
        hidden = self.read(inputs_embeds, attention_mask, rest, cache)
        # The newest token of a row is the last that is not padding.
        queries = inputs_embeds.shape[1]
        place = torch.arange(1, queries + 1, device=hidden.device)
        real = attention_mask[:, past[0][0].shape[2] :] * place
        logits = self.model.logits(_picked(hidden, real.argmax(dim=1)))
        present = [one for layer in cache.layers for one in (layer.keys, layer.values)]
        return (logits, *(one for one in present if one is not None))


class _Prefill(_Reader):
    def cache(self, rest: Sequence[Tensor]) -> StaticCache:
        return StaticCache(_paired(rest))

    def forward(self, inputs_embeds: Tensor, last: Tensor, *rest: Tensor) -> tuple[Tensor]:
        cache = self.cache(rest[self.outside :])
        hidden = self.read(inputs_embeds, None, rest, cache)
        return (self.model.logits(_picked(hidden, last)),)


class _PagedPrefill(_Prefill):
    def cache(self, rest: Sequence[Tensor]) -> StaticCache:
        return PagedCache(_paired(rest[1:]), rest[0])


class _Step(_Reader):
    def cache(self, rest: Sequence[Tensor], positions: Tensor, slots: Tensor) -> StaticCache:
        return StaticCache(_paired(rest), positions, slots)

    def forward(
        self, input_ids: Tensor, positions: Tensor, slots: Tensor, *rest: Tensor
    ) -> tuple[Tensor]:
        cache = self.cache(rest[self.outside :], positions, slots)
        hidden = self.read(self.model.language.embed(input_ids), None, rest, cache)
        return (self.model.logits(hidden),)


class _PagedStep(_Step):
    def cache(self, rest: Sequence[Tensor], positions: Tensor, slots: Tensor) -> StaticCache:
        return PagedCache(_paired(rest[1:]), rest[0], positions, slots)


class _SinglePass(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, visual: Tensor, visual_mask: Tensor
    ) -> tuple[Tensor, ...]:
        words = self.model.language.embed(input_ids)
        hidden = self.model.read(words, attention_mask, visual, visual_mask)
        output = self.model.head(hidden, attention_mask, self.model.language.embedding, None, None)
        extra = output.seq_relationship_logits
        return (output.logits,) if extra is None else (output.logits, extra)


def _picked(hidden: Tensor, index: Tensor) -> Tensor:
    """One token of each row: [batch, tokens, width] at [batch] -> [batch, 1, width]."""
    return hidden.gather(1, index[:, None, None].expand(-1, 1, hidden.shape[-1]))
