"""Names and extents of what the stages of a design hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vlmc.capture.graph import Wire
from vlmc.ir import Arch

CacheKind = Literal["growing", "static", "paged"]

BLOCK = 16
"""Tokens of a block of a paged cache."""


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
            self.features = pairs("memory", blocks, ("images", *own))
            keys: Wire = Wire("", ("batch", own[0], "visual", own[2]))
            self.memory = pairs("memory", blocks, keys.dims)
        elif arch.serving == "encoder_decoder":
            dims = ("batch", self.heads, "source", self.head_dim)
            self.memory = pairs("memory", self.layers, dims)

    def cache(self, prefix: str, extent: str | int, *, written: bool = False) -> tuple[Wire, ...]:
        """Keys and values of every layer, `extent` tokens long."""
        dims = ("batch", self.heads, extent, self.head_dim)
        return pairs(prefix, self.layers, dims, written=written)

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


def pairs(
    prefix: str, layers: int, dims: Sequence[int | str], *, written: bool = False
) -> tuple[Wire, ...]:
    """Keys and values of so many layers, each of the extents `dims`."""
    return tuple(
        Wire(f"{prefix}.{index}.{name}", tuple(dims), written=written)
        for index in range(layers)
        for name in ("key", "value")
    )
