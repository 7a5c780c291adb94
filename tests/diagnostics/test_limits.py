"""Every size has a bound by its meaning: what validates is built in seconds."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.diagnostics.test_rules import ENCODER, LANGUAGE, codes, design, diagnose
from vlmc.builder.model import instantiate
from vlmc.diagnostics import UsageError
from vlmc.resolver import resolve
from vlmc.spec import load
from vlmc.spec.loader import draft
from vlmc.spec.reader import parse
from vlmc.spec.text import read_text

NFNET: dict[str, Any] = {
    "kind": "nfnet", "image_size": 64, "depths": [1, 1, 1, 1], "widths": [16, 16, 16, 16],
    "group_size": 4,
}  # fmt: skip
PAIR: dict[str, Any] = {
    "kind": "encoder_decoder", "width": 32, "layers": 2, "heads": 4, "hidden": 64,
    "vocabulary": 100,
}  # fmt: skip

TOO_LARGE = [
    ("encoder", {**ENCODER, "image_size": 2**31 - 1, "patch_size": 1}, "image_size: 65536"),
    ("encoder", {**ENCODER, "layers": 1_000_000}, "layers: 1000"),
    ("encoder", {**ENCODER, "heads": 2**17}, "heads: 65536"),
    ("encoder", {**ENCODER, "hidden": 2**21}, "hidden: 1048576"),
    ("encoder", {**ENCODER, "frames": {"train": 2**20}}, "train: 65536"),
    ("encoder", {**NFNET, "depths": [1, 1001, 1, 1]}, "depths[1]: 1000"),
    ("encoder", {"kind": "regions", "count": 2**31 - 1}, "count: 1048576"),
    ("adapter", {"kind": "mlp", "layers": 2**31 - 1}, "layers: 64"),
    ("adapter", {"kind": "qformer", "layers": 1001}, "layers: 1000"),
    ("adapter", {"kind": "perceiver_resampler", "queries": 2**21}, "queries: 1048576"),
    ("language", {**LANGUAGE, "layers": 1_000_000}, "layers: 1000"),
    ("language", {**LANGUAGE, "head_dim": 2**31 - 1}, "head_dim: 1048576"),
    ("language", {**PAIR, "decoder_layers": 1001}, "decoder_layers: 1000"),
    ("language", {**PAIR, "decoder_layers": 2**40}, "decoder_layers: 1000"),
    ("fusion", {"kind": "single_stream", "token_types": 2**40}, "token_types: 1048576"),
    ("language", {**PAIR, "positions": {"buckets": 2**30}}, "buckets: 1048576"),
    ("head", {"kind": "classify", "classes": 2**31 - 1}, "classes: 1048576"),
]


@pytest.mark.parametrize(("section", "fields", "bound"), TOO_LARGE)
def test_a_size_beyond_its_meaning_is_told_the_bound(
    section: str, fields: dict[str, Any], bound: str
) -> None:
    assert bound in [d.help for d in diagnose(design(**{section: fields})) if d.code == "VLMC012"]


def built(document: dict[str, Any]) -> float:
    """Seconds that a sound design takes on the meta device."""
    result = draft(parse(yaml.safe_dump(document), "x.yaml"), "x.yaml", default_name="x")
    assert codes(document) == []
    begun = time.process_time()
    instantiate(resolve(result.spec()))
    return time.process_time() - begun


@pytest.mark.parametrize(
    "sections",
    [
        {"language": {**LANGUAGE, "layers": 1000}, "fusion": {"kind": "gated_cross_attention"}},
        {"encoder": {**NFNET, "depths": [1000, 1, 1, 1]}},
        {"encoder": {**ENCODER, "layers": 1000}},
        {"language": {**LANGUAGE, "vocabulary": 2**31 - 1}},
    ],
)
def test_the_largest_that_validates_is_built(sections: dict[str, Any]) -> None:
    assert built(design(**sections)) < 20


def test_a_position_for_each_of_too_many_patches_is_refused() -> None:
    """2^32 patches of 2^10 channels are 2^42 numbers."""
    large = {**ENCODER, "image_size": 2**16, "patch_size": 1, "width": 2**10}
    found = [d.code for d in diagnose(design(encoder=large))]
    assert "VLMC012" in found


@pytest.mark.parametrize(
    ("preprocess", "expected"),
    [
        ({"std": [0, 0.5, 0.5]}, "more than 0"),
        ({"mean": [1.5, 0.5, 0.5]}, "at most 1"),
        ({"mean": [-0.1, 0.5, 0.5]}, "at least 0"),
        ({"mean": [0.1, 0.2]}, "a list of 3"),
    ],
)
def test_pixels_are_normalised_by_what_can_be(preprocess: Any, expected: str) -> None:
    (found,) = diagnose(design(encoder={"preprocess": preprocess}))
    assert found.expected == expected


def test_a_pipe_is_no_spec(tmp_path: Path) -> None:
    """Opening it would wait for a writer that never comes."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="not a regular file"):
        read_text(pipe)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("extends=foo.yaml", "stands in the spec file itself"),
        ("training.stages.0.lr=1", "replaced whole"),
    ],
)
def test_an_override_that_would_be_lost_is_a_wrong_command(
    override: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("encoder: clip-vit-l-14-336\nadapter: mlp\nlanguage: vicuna-7b-v1.5\n")
    with pytest.raises(UsageError, match=message):
        load(path, [override])
