"""BLIP-2 with OPT against transformers' Blip2ForConditionalGeneration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    assert_caught,
    assert_gradients,
    assert_image_matters,
    assert_parity,
    changed,
    distance,
    greedy_ours,
    greedy_reference,
    loaded,
    logits_of,
    mutant,
    randomise,
    reference_with_noise,
)
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
)

from vlmc.diagnostics import UsageError

VOCABULARY = 99
IMAGE = 98
QUERIES = 5

DOCUMENT: dict[str, Any] = {
    "encoder": {
        "kind": "vit",
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 3,
        "heads": 4,
        "hidden": 64,
        "activation": "gelu",
        "norm_eps": 1e-6,
        "patch_bias": True,
        "pre_norm": False,
        "features": {"layer": -1, "norm": True},
        "frozen": True,
    },
    "adapter": {
        "kind": "qformer",
        "queries": QUERIES,
        "layers": 4,
        "cross_attention_every": 2,
        "width": 48,
        "heads": 4,
        "hidden": 80,
    },
    "fusion": {"point": "mid", "kind": "query_prefix", "token": IMAGE},
    "language": {
        "kind": "decoder",
        "width": 64,
        "layers": 4,
        "heads": 4,
        "hidden": 96,
        "vocabulary": VOCABULARY,
        "context": 128,
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": "relu",
        "gated": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "positions": {"kind": "learned", "offset": 2},
        "tied_head": True,
        "frozen": True,
    },
    "token_budget": {"images": 3, "text": 64},
}


def config() -> Blip2Config:
    """The reference's configuration of DOCUMENT."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=4,
            num_attention_heads=4,
            vocab_size=20,
        ),
        text_config=OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=128,
        ),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )


class Pair:
    """A reference, its checkpoint in several shards, and our model loaded from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reference: Any = Blip2ForConditionalGeneration(config())
        randomise(self.reference)
        self.reference.save_pretrained(folder, max_shard_size="150KB")
        self.ours: Any = loaded(DOCUMENT, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("blip2-opt"))


def sequence(*parts: int) -> Tensor:
    """A row of ids: `n` stands for n words, 0 for an image."""
    pieces = [torch.randint(3, IMAGE, (n,)) if n else torch.full((QUERIES,), IMAGE) for n in parts]
    return torch.cat(pieces)[None]


def one_image() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"input_ids": sequence(0, 7), "pixel_values": torch.randn(1, 3, 32, 32)}


def interleaved() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {"input_ids": sequence(3, 0, 2, 0, 0, 5), "pixel_values": torch.randn(3, 3, 32, 32)}


def padded(side: str) -> dict[str, Tensor]:
    """Two rows, the second one image shorter."""
    torch.manual_seed(4)
    long, short = sequence(0, 2, 0, 5), sequence(0, 4)
    gap = long.shape[1] - short.shape[1]
    fill = (gap, 0) if side == "left" else (0, gap)
    return {
        "input_ids": torch.cat((long, F.pad(short, fill, value=1))),
        "attention_mask": torch.cat((torch.ones_like(long), F.pad(torch.ones_like(short), fill))),
        "pixel_values": torch.randn(3, 3, 32, 32),
    }


def in_front(images: int, rows: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The reference's inputs, with placeholders before the text, and ours without any."""
    torch.manual_seed(5)
    words = torch.cat([sequence(6) for _ in range(rows)])
    mask = torch.ones_like(words)
    mask[0, :2] = 0
    pixels = torch.randn(images, 3, 32, 32)
    visual = QUERIES * images // rows
    theirs = {
        "input_ids": F.pad(words, (visual, 0), value=IMAGE),
        "attention_mask": F.pad(mask, (visual, 0), value=1),
        "pixel_values": pixels,
    }
    return theirs, {"input_ids": words, "attention_mask": mask, "pixel_values": pixels}


def test_the_checkpoint_is_sharded(pair: Pair) -> None:
    assert len(list(pair.folder.glob("*.safetensors"))) > 2


@pytest.mark.parametrize("inputs", [one_image, interleaved])
def test_logits(pair: Pair, inputs: Any) -> None:
    assert_parity(pair.reference, pair.ours, inputs())


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_a_padded_batch(pair: Pair, side: str) -> None:
    inputs = padded(side)
    assert_parity(pair.reference, pair.ours, inputs, rows=inputs["attention_mask"])


@pytest.mark.parametrize(("images", "rows"), [(2, 2), (4, 2)])
def test_visual_tokens_in_front_of_text_without_placeholders(
    pair: Pair, images: int, rows: int
) -> None:
    theirs, ours = in_front(images, rows)
    seen = theirs["attention_mask"]
    assert_parity(pair.reference, pair.ours, theirs, our_inputs=ours, rows=seen)
    # Labels are the words'; the first is asked of the last visual token, and none of padding.
    labels = ours["input_ids"].clone()
    labels[0, :3] = -100
    visual = QUERIES * images // rows
    expected = pair.reference(**theirs, labels=F.pad(labels, (visual, 0), value=-100)).loss
    torch.testing.assert_close(pair.ours(**ours, labels=labels).loss, expected)


def test_logits_without_an_image(pair: Pair) -> None:
    """The reference always wants an image: its language model is compared by itself."""
    torch.manual_seed(3)
    inputs = {"input_ids": sequence(12)}
    assert_parity(pair.reference.language_model, pair.ours, inputs)


def test_another_image_changes_the_logits(pair: Pair) -> None:
    assert_image_matters(pair.ours, one_image())
    assert_image_matters(pair.ours, interleaved())
    assert_image_matters(pair.ours, in_front(2, 2)[1])


@pytest.mark.parametrize("inputs", [one_image, interleaved, lambda: padded("left")])
def test_greedy_tokens_with_the_cache(pair: Pair, inputs: Any) -> None:
    expected = greedy_reference(pair.reference, inputs())
    assert len(expected.unique()) > 2
    assert torch.equal(greedy_ours(pair.ours, inputs()), expected)


def test_greedy_tokens_behind_visual_tokens_in_front(pair: Pair) -> None:
    theirs, ours = in_front(4, 2)
    expected = greedy_reference(pair.reference, theirs)
    assert torch.equal(greedy_ours(pair.ours, ours), expected)
    theirs.pop("attention_mask")
    ours.pop("attention_mask")
    expected = greedy_reference(pair.reference, theirs)
    assert torch.equal(greedy_ours(pair.ours, ours), expected)


def test_gradients_of_the_trainable_parts(pair: Pair) -> None:
    inputs = interleaved()
    labels = inputs["input_ids"].clone()
    labels[:, :5] = -100
    compared = assert_gradients(pair.reference, pair.ours, pair.folder, inputs, labels)
    trainable = {name for name, p in pair.ours.named_parameters() if p.requires_grad}
    assert compared == trainable
    assert compared
    assert all(name.startswith("adapter.") for name in compared)


MISTAKES: dict[str, tuple[str, Any]] = {
    "tanh gelu in the encoder": ("encoder.activation", "gelu_tanh"),
    "encoder eps": ("encoder.norm_eps", 1e-5),
    "post_layernorm skipped": ("encoder.features", {"layer": -1}),
    "class token dropped": ("encoder.features", {"layer": -1, "norm": True, "drop_cls": True}),
    "features of the layer before": ("encoder.features", {"layer": -2, "norm": True}),
    "Q-Former eps": ("adapter.norm_eps", 1e-5),
    "tanh gelu in the Q-Former": ("adapter.activation", "gelu_tanh"),
    "gelu in the language model": ("language.activation", "gelu"),
    "language eps": ("language.norm_eps", 1e-6),
    "positions without the offset": ("language.positions", {"kind": "learned", "offset": 1}),
    "a head of its own": ("language.tied_head", False),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_design_is_caught(pair: Pair, name: str) -> None:
    """By the logits, and before that by config.json or the names."""
    path, value = MISTAKES[name]
    document = changed(DOCUMENT, path, value)
    if name == "positions without the offset":
        document = changed(document, "language.context", 129)
    with pytest.raises(UsageError):
        loaded(document, pair.folder)
    if name != "a head of its own":
        assert_caught(pair.reference, mutant(pair.ours, document), one_image())


def _qkv(order: tuple[int, int, int] | None) -> Any:
    """Breaks the split of the fused projection: thirds in another order, or by heads first."""

    def broken(ours: Any) -> None:
        for layer in ours.encoder.layers:
            attention = layer.attention
            parts = (attention.query, attention.key, attention.value)
            for leaf in ("weight", "bias"):
                whole = torch.cat([getattr(part, leaf).data for part in parts])
                if order is None:
                    shape = (4, 3, 8, *whole.shape[1:])
                    thirds = whole.reshape(shape).transpose(0, 1).flatten(0, 2).chunk(3)
                else:
                    pieces = whole.chunk(3)
                    thirds = [pieces[i] for i in order]
                for part, third in zip(parts, thirds, strict=True):
                    setattr(part, leaf, nn.Parameter(third))

    return broken


def _patch_bias_lost(ours: Any) -> None:
    ours.encoder.patch_embedding.bias = None


def _query_norm_skipped(ours: Any) -> None:
    ours.adapter.norm = nn.Identity()


def _pre_norm(ours: Any) -> None:
    for layer in ours.adapter.layers:
        layer.pre_norm = True


def _cross_attention_one_layer_late(ours: Any) -> None:
    layers = ours.adapter.layers
    for index in (0, 2):
        layers[index + 1].cross, layers[index].cross = layers[index].cross, None
        layers[index + 1].cross_norm, layers[index].cross_norm = layers[index].cross_norm, None


def _cross_attention_in_the_first_half(ours: Any) -> None:
    layers = ours.adapter.layers
    layers[1].cross, layers[2].cross = layers[2].cross, None
    layers[1].cross_norm, layers[2].cross_norm = layers[2].cross_norm, None


def _another_mlp(ours: Any) -> None:
    """The queries' MLP taken for another one, as that of the text path would be."""
    mlp = ours.adapter.layers[0].mlp
    mlp.down.weight = nn.Parameter(torch.randn_like(mlp.down.weight) * mlp.down.in_features**-0.5)


def _queries_transposed(ours: Any) -> None:
    queries = ours.adapter.queries
    ours.adapter.queries = nn.Parameter(queries.data.flip(0))


BREAKS: dict[str, Any] = {
    "fused projection (3, heads, d) read as (heads, 3, d)": _qkv(None),
    "fused projection in another order": _qkv((1, 0, 2)),
    "patch convolution without its bias": _patch_bias_lost,
    "no LayerNorm on the queries": _query_norm_skipped,
    "Q-Former with norms before": _pre_norm,
    "cross-attention at odd layers": _cross_attention_one_layer_late,
    "cross-attention in the first layers": _cross_attention_in_the_first_half,
    "another MLP": _another_mlp,
    "queries in another order": _queries_transposed,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_mistake_in_the_code_is_caught(pair: Pair, name: str) -> None:
    broken = mutant(pair.ours, DOCUMENT)
    BREAKS[name](broken)
    assert_caught(pair.reference, broken, one_image())


def _positions_of_places(attention_mask: Tensor) -> Tensor:
    """Positions that count padding as well."""
    return torch.arange(attention_mask.shape[1]).expand_as(attention_mask)


def test_positions_that_count_padding_are_caught(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = padded("left")
    rows = inputs["attention_mask"]
    expected, noise = reference_with_noise(pair.reference, inputs, rows)
    target = "vlmc.components.shared.masks.token_positions"
    monkeypatch.setattr(target, _positions_of_places)
    assert distance(logits_of(pair.ours, inputs), expected, rows) > max(1e-5, 2 * noise)


def test_images_must_fill_the_rows(pair: Pair) -> None:
    inputs = in_front(4, 2)[1]
    inputs["pixel_values"] = inputs["pixel_values"][:3]
    with pytest.raises(ValueError, match="3 images for 2 rows"):
        pair.ours(**inputs)
    inputs = one_image()
    with pytest.raises(ValueError, match="takes no decoder_"):
        pair.ours(**inputs, decoder_input_ids=inputs["input_ids"])


def test_text_path_of_the_q_former_is_left_on_disk(pair: Pair, tmp_path: Path) -> None:
    """A checkpoint that keeps the pre-training's text path loads, and gives the same."""
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Tensor] = {}
    for shard in pair.folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    layer = "qformer.encoder.layer.0"
    for part in ("intermediate", "output"):
        tensors[f"{layer}.{part}.dense.weight"] = torch.randn(3, 3)
    tensors["qformer.embeddings.word_embeddings.weight"] = torch.randn(20, 48)
    (tmp_path / "config.json").write_text((pair.folder / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    assert_parity(pair.reference, loaded(DOCUMENT, tmp_path), one_image())
