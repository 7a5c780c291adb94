"""BLIP-2's parts by themselves: published figures, rules, twins, number formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from vlmc.builder.model import instantiate
from vlmc.builder.seed import initialise
from vlmc.components.shared.position_bias import distance_buckets
from vlmc.resolver import check, flow, resolve
from vlmc.spec.document import ModelSpec
from vlmc.spec.loader import draft, load
from vlmc.spec.reader import parse

SPECS = ("blip2", "blip2-flan-t5")


def spec_of(root: Path, name: str) -> ModelSpec:
    return load(root / "specs" / f"{name}.yaml").spec()


@pytest.mark.parametrize(
    ("name", "published"),
    # Salesforce/blip2-opt-2.7b: 3.74B on its model card; blip2-flan-t5-xl: 9.44 + 6.33 GB of fp32.
    [("blip2", 3.74e9), ("blip2-flan-t5", 15.77e9 / 4)],
)
def test_parameters_are_the_published_ones(root: Path, name: str, published: float) -> None:
    arch = resolve(spec_of(root, name))
    assert arch.parameters == pytest.approx(published, rel=0.002)
    # Li et al. (2023), table 2: 107M are trained, the Q-Former and its projection.
    assert arch.trainable_parameters == pytest.approx(107e6, rel=0.005)
    assert arch.tokens.in_sequence == 32
    instantiate(arch)


@pytest.mark.parametrize("name", SPECS)
def test_the_twin_runs(root: Path, name: str) -> None:
    arch = resolve(spec_of(root, name), mini=True)
    model = instantiate(arch, device="cpu")
    initialise(model, seed=0)
    size = arch.node("encoder").arguments["image_size"]
    ids = torch.arange(3, 9)[None]
    one, other = torch.randn(2, 1, 3, size, size).unbind()  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=one).logits
        another = model(input_ids=ids, pixel_values=other).logits
    assert logits.isfinite().all()
    assert not torch.equal(logits, another)
    target = 1 if name == "blip2-flan-t5" else 6 + arch.tokens.in_sequence
    assert logits.shape == (1, target, 320)


DESIGN: dict[str, Any] = {
    "encoder": {
        "kind": "vit",
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "hidden": 64,
    },
    "adapter": {"kind": "qformer", "queries": 4, "layers": 4, "width": 32, "heads": 4},
    "fusion": {"kind": "query_prefix", "token": 98},
    "language": {
        "kind": "encoder_decoder",
        "width": 32,
        "layers": 4,
        "heads": 4,
        "hidden": 64,
        "vocabulary": 99,
    },
    "token_budget": {"text": 16},
}


def codes(path: str, value: Any) -> list[tuple[str, str]]:
    """Codes and places of what is wrong with DESIGN once `value` stands at `path`."""
    document = json.loads(json.dumps(DESIGN))
    at = document
    *parents, last = path.split(".")
    for key in parents:
        at = at.setdefault(key, {})
    at[last] = value
    found = draft(parse(json.dumps(document), "one.yaml"), "one.yaml", default_name="one")
    problems = [*found.problems, *check(flow(found.sections))]
    return [(problem.code, ".".join(map(str, problem.path))) for problem in problems]


def test_the_design_is_sound() -> None:
    assert codes("name", "sound") == []


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("adapter.heads", 5, "VLMC101"),
        ("adapter.queries", 18, "VLMC112"),
        ("adapter.layers", 5, "VLMC113"),
        ("adapter.cross_attention_every", 5, "VLMC114"),
        ("language.heads", 5, "VLMC101"),
        ("language.decoder_layers", 0, "VLMC115"),
        ("language.start_token", 99, "VLMC111"),
        ("language.positions.buckets", 30, "VLMC115"),
        ("language.positions.max_distance", 16, "VLMC115"),
        ("fusion.token", 99, "VLMC111"),
        ("fusion.point", "late", "VLMC120"),
        ("fusion", {"kind": "placeholder"}, "VLMC121"),
    ],
)
def test_rules(path: str, value: Any, code: str) -> None:
    place = "fusion.kind" if path == "fusion" else path
    assert (code, place) in codes(path, value)


def test_limits_themselves_are_sound() -> None:
    """17 tokens of the encoder, 4 layers, 16 buckets of single distances: one more is wrong."""
    for path, value in (
        ("adapter.queries", 17),
        ("adapter.layers", 4),
        ("adapter.cross_attention_every", 4),
        ("language.positions.max_distance", 17),
    ):
        assert codes(path, value) == []


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 10), (4, 3)])
def test_buckets_are_t5s(bidirectional: bool, buckets: int, most: int) -> None:
    distances = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(
        distances, bidirectional=bidirectional, num_buckets=buckets, max_distance=most
    )
    got = distance_buckets(
        distances, buckets=buckets, max_distance=most, bidirectional=bidirectional
    )
    assert torch.equal(got, expected)
    assert got.unique().numel() == buckets - bidirectional  # nothing is ahead by 0


def test_the_q_former_may_stay_in_fp32(root: Path) -> None:
    """As the published system keeps it beside half-precision towers."""
    arch = resolve(spec_of(root, "blip2"), mini=True)
    model: Any = instantiate(arch, device="cpu")
    initialise(model, seed=0)
    model.to(torch.bfloat16).adapter.float()
    size = arch.node("encoder").arguments["image_size"]
    pixels = torch.randn(1, 3, size, size, dtype=torch.bfloat16)  # type: ignore[arg-type]
    assert model.encode_images(pixels).dtype == torch.float32
    logits = model(input_ids=torch.arange(3, 9)[None], pixel_values=pixels).logits
    assert logits.dtype == torch.bfloat16
