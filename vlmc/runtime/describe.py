"""From a spec and its `Arch` to what running it has to know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from vlmc.capture.stages import capacity
from vlmc.components.encoder.regions.spec import Regions
from vlmc.ir import Arch
from vlmc.runtime.design import Design, Preprocessing
from vlmc.spec.document import ModelSpec

IN_FRONT = ("prefix", "query_prefix")
"""Fusions whose leading images stand before the start token (Li et al., 2023, figure 3)."""


def describe(spec: ModelSpec, arch: Arch) -> Design:
    """The design of `arch`, which `spec` resolves to (the twin's spec where `arch.mini`)."""
    fusion, language = arch.node("fusion"), arch.node("language").arguments
    encoder = spec.encoder
    seen = spec.encoder.visual()
    made = [
        spec.adapter.output(replace(seen, frames=frames), spec.language)
        for frames in range(1, seen.frames + 1)
    ]
    regions = encoder if isinstance(encoder, Regions) else None
    pixels: Any = encoder
    return Design(
        name=arch.name,
        mini=arch.mini,
        serving=arch.serving,
        head=cast("Any", arch.node("head").kind),
        vocabulary=spec.language.total_vocabulary,
        context=spec.language.context,
        text=arch.tokens.text,
        sequence=arch.tokens.sequence,
        capacity=capacity(arch),
        max_images=arch.tokens.images,
        image_token=_token(fusion.arguments.get("image_token")),
        settable="token" in type(spec.fusion).model_fields,
        leading=fusion.kind in IN_FRONT,
        all_previous=fusion.arguments.get("all_previous") is True,
        positions=tuple(spec.fusion.in_sequence(visual) for visual in made),
        visual=tuple(visual.total for visual in made),
        input_name=cast("Any", spec.encoder.input_name()),
        image_size=None if regions else pixels.image_size,
        preprocessing=None if regions else _preprocessing(pixels),
        regions=regions.count if regions else 0,
        region_width=regions.width if regions else 0,
        boxes=regions is not None and regions.boxes,
        start_token=_token(language.get("start_token")),
        cache_elements=spec.language.cache_elements_per_token(),
        parts=tuple(node.role for node in arch.nodes if node.count),
    )


def _token(found: object) -> int | None:
    return found if isinstance(found, int) else None


def _preprocessing(encoder: Any) -> Preprocessing:
    steps = encoder.preprocess
    return Preprocessing(
        resize=steps.resize, interpolation=steps.interpolation, mean=steps.mean, std=steps.std
    )
