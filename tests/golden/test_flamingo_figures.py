"""Flamingo's parts against the figures that the papers print."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmc.components.encoder.nfnet.spec import NFNet
from vlmc.components.language.decoder.spec import Decoder, Positions
from vlmc.ir import Arch
from vlmc.resolver import resolve
from vlmc.spec import load, presets
from vlmc.spec.reader import plain

MILLION, BILLION = 10**6, 10**9

# Alayrac et al. (2022), Table 5; each to the last digit that it prints.
PUBLISHED = {
    "flamingo-3b": {"language": 1.4e9, "fusion": 1.2e9, "total": 3.2e9},
    "flamingo-9b": {"language": 7.1e9, "fusion": 1.6e9, "total": 9.3e9},
    "flamingo": {"language": 70e9, "fusion": 10e9, "total": 80e9},
}


def arch(root: Path, name: str) -> Arch:
    draft = load(root / "specs" / f"{name}.yaml")
    assert not draft.problems
    return resolve(draft.spec())


@pytest.mark.parametrize("name", PUBLISHED)
def test_flamingo(root: Path, name: str) -> None:
    design = arch(root, name)
    assert design.node("encoder").count == pytest.approx(435 * MILLION, rel=0.002)
    assert design.node("adapter").count == pytest.approx(194 * MILLION, rel=0.003)
    figures = {
        "language": design.node("language").count + design.node("head").count,
        "fusion": design.node("fusion").count,
        "total": design.parameters,
    }
    for part, published in PUBLISHED[name].items():
        rounded_to_ten = name == "flamingo" and part == "fusion"
        off = abs(figures[part] / published - 1)
        assert off <= 0.02 or rounded_to_ten, (part, figures[part])
        if rounded_to_ten:
            assert round(figures[part] / BILLION) == 10
            notes = plain(presets.document("language", "chinchilla-70b"))["notes"]
            assert any("10B" in note and "9.66B" in note for note in notes)


def test_what_is_trained(root: Path) -> None:
    """Only the resampler and the gated blocks."""
    design = arch(root, "flamingo")
    trained = {node.role for node in design.nodes if not node.frozen and node.count}
    assert trained == {"adapter", "fusion"}


def test_tokens(root: Path) -> None:
    """Five images are 64 tokens each beside the text, not in it."""
    tokens = arch(root, "flamingo").tokens
    assert (tokens.per_image, tokens.in_sequence, tokens.memory) == (64, 0, 5 * 64)
    assert tokens.sequence == tokens.text == 2048


def test_nfnet_f6(root: Path) -> None:
    """438.36M with a classifier of 1000 classes (timm's dm_nfnet_f6)."""
    encoder = load(root / "specs" / "flamingo.yaml").spec().encoder
    assert isinstance(encoder, NFNet)
    classifier = encoder.features * 1000 + 1000
    assert sum(encoder.parameters().values()) + classifier == pytest.approx(438.36e6, rel=1e-5)
    visual = encoder.visual()
    assert (visual.grid, visual.width, visual.frames) == ((10, 10), 3072, 30)


# Hoffmann et al. (2022), Table A9: millions of parameters, width, MLP, heads of 128, layers.
TABLE_A9 = [
    (6_796, 3584, 14336, 28, 40),
    (9_293, 4096, 16384, 32, 42),
    (12_569, 4608, 18432, 32, 47),
    (16_183, 5120, 20480, 40, 47),
]


@pytest.mark.parametrize("row", TABLE_A9)
def test_chinchilla_family(row: tuple[int, ...]) -> None:
    """Biases and the projection of distances are inferred: they fit the table to its last digit."""
    millions, width, hidden, heads, layers = row
    decoder = Decoder(
        width=width,
        layers=layers,
        heads=heads,
        head_dim=128,
        hidden=hidden,
        vocabulary=32000,
        norm="rms",
        activation="gelu",
        gated=False,
        output_bias=True,
        mlp_bias=True,
        positions=Positions(kind="transformer_xl"),
        tied_head=True,
    )
    count = sum(decoder.parameters().values())
    assert abs(count / MILLION - millions) < 1.0


def test_idefics_9b(root: Path) -> None:
    """Llama 7B, the vision tower of CLIP ViT-H/14 (630M), and what joins them: 9B."""
    design = arch(root, "idefics-9b")
    language = design.node("language").count + design.node("head").count
    assert language == 6_738_415_616 + 2 * 2 * 4096
    assert design.node("encoder").count == pytest.approx(630e6, rel=0.002)
    assert design.parameters == pytest.approx(9e9, rel=0.01)
