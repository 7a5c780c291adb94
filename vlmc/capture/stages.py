"""How each way of serving divides a model's work into stages.

Three sets for what decodes: `growing` takes the cache and gives it back one token longer, as ONNX
clients expect; `static` writes into caches of fixed size, so that a step allocates none; `paged`
writes into blocks of a pool that all generations share. The last is these stages alone, since all
others are those of `static`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlmc.capture import bodies
from vlmc.capture.graph import Stage, Wire
from vlmc.capture.layout import BLOCK, CacheKind, Layout, capacity, pairs
from vlmc.ir import Arch

__all__ = ["BLOCK", "CacheKind", "Layout", "capacity", "stages", "written"]


def stages(arch: Arch, model: Any, cache: CacheKind) -> list[Stage]:
    """The stages of `model`, the module of `arch`, in the order in which they run."""
    layout = Layout(arch)
    first = [
        Stage(
            name="vision",
            body=bodies.Vision(model, arch),
            inputs=(layout.pixels,),
            outputs=layout.features,
        ),
    ]
    if arch.serving == "single_pass":
        return [*first, _single_pass(arch, model)]
    first.append(
        Stage(
            name="embed",
            body=bodies.Embed(model),
            inputs=(Wire("input_ids", ("batch", "text"), "int"),),
            outputs=(Wire("inputs_embeds", ("batch", "text", layout.width)),),
        )
    )
    if arch.serving == "encoder_decoder":
        first.append(
            Stage(
                name="encoder",
                body=bodies.Encoder(model),
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


def written(stage: Stage) -> Stage:
    """The stage as it is captured: a step over a cache that is written in place writes its logits
    in place, too, so that a caller who keeps its tensors is given none."""
    if not isinstance(stage.body, bodies.Step):
        return stage
    (logits,) = stage.outputs
    return replace(
        stage,
        body=bodies.WrittenStep(stage.body),
        inputs=(*stage.inputs, replace(logits, written=True)),
        outputs=(),
    )


def _growing(arch: Arch, model: Any, layout: Layout) -> Stage:
    own = (
        Wire("inputs_embeds", ("batch", "text", layout.width)),
        Wire("attention_mask", ("batch", "total"), "int"),
    )
    return Stage(
        name="decoder",
        body=bodies.Growing(model, arch, layout),
        inputs=(*own, *layout.outside, *layout.cache("past_key_values", "past")),
        outputs=(_logits(arch), *layout.cache("present", "total")),
    )


def _static(arch: Arch, model: Any, layout: Layout) -> list[Stage]:
    cache = layout.cache("cache", layout.capacity, written=True)
    decode = Stage(
        name="decode",
        body=bodies.Step(model, arch, layout),
        inputs=(*_step(layout), *cache),
        outputs=(_logits(arch),),
    )
    single = Stage(
        name="decode_one",
        body=bodies.Step(model, arch, layout),
        inputs=tuple(_of_one(wire) for wire in decode.inputs),
        outputs=tuple(_of_one(wire) for wire in decode.outputs),
    )
    if arch.serving == "encoder_decoder":
        return [decode, single]
    prefill = Stage(
        name="prefill",
        body=bodies.Prefill(model, arch, layout),
        inputs=(*_begin(layout), *cache),
        outputs=(_logits(arch),),
    )
    return [prefill, decode, single]


def _paged(arch: Arch, model: Any, layout: Layout) -> list[Stage]:
    block = ("pool", layout.heads, BLOCK, layout.head_dim)
    pools = pairs("pool", layout.layers, block, written=True)
    table = Wire("table", ("batch", layout.capacity // BLOCK), "int")
    decode = Stage(
        name="paged_decode",
        body=bodies.PagedStep(model, arch, layout),
        inputs=(*_step(layout), table, *pools),
        outputs=(_logits(arch),),
    )
    if arch.serving == "encoder_decoder":
        return [decode]
    prefill = Stage(
        name="paged_prefill",
        body=bodies.PagedPrefill(model, arch, layout),
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
        body=bodies.SinglePass(model),
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
