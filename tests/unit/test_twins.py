"""Twins of designs whose parts must be equally wide: vision that no adapter brings to the language
model's width."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from vlmc.builder.model import instantiate
from vlmc.resolver import resolve
from vlmc.spec.loader import draft
from vlmc.spec.reader import parse

ENCODER = {
    "image_size": 32,
    "patch_size": 8,
    "width": 384,
    "heads": 3,
    "layers": 2,
    "hidden": 64,
}
LANGUAGES: dict[str, dict[str, Any]] = {
    "decoder": {"kind": "decoder", "heads": 6},
    "encoder_decoder": {"kind": "encoder_decoder", "heads": 6},
    "encoder": {"kind": "encoder", "heads": 6, "context": 512},
}


@pytest.mark.parametrize("kind", LANGUAGES)
@pytest.mark.parametrize("adapter", ["identity", "perceiver_resampler"])
def test_the_language_model_follows_the_width_of_vision(kind: str, adapter: str) -> None:
    shape = {"width": 384, "layers": 2, "hidden": 64, "vocabulary": 64}
    resampler = {"queries": 4, "layers": 1, "width": 384, "heads": 3, "head_dim": 128}
    document = {
        "encoder": ENCODER,
        "adapter": {"kind": adapter, **(resampler if adapter != "identity" else {})},
        "language": {**shape, **LANGUAGES[kind]},
        "token_budget": {"images": 1, "text": 32},
    }
    spec = draft(parse(yaml.safe_dump(document), "x.yaml"), "x.yaml", default_name="x").spec()
    usual = spec.language.mini()
    twin = spec.mini()
    given = twin.adapter.output(twin.encoder.visual(), twin.language)
    assert given.width == twin.language.width != usual.width, "the case must need a width"
    instantiate(resolve(spec, mini=True))
