"""Idefics against transformers' IdeficsForVisionText2Text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
    saved,
)
from torch import Tensor
from transformers import IdeficsConfig, IdeficsForVisionText2Text

from vlmc.components.adapter.perceiver_resampler.module import ResamplerBlock
from vlmc.components.fusion.gated_cross_attention.module import GatedBlock
from vlmc.components.language.decoder.module import Decoder
from vlmc.components.shared.attention import Attention
from vlmc.components.shared.rotary import Rotary, rotate
from vlmc.diagnostics import UsageError

WORDS = 90
IMAGE = 91

DOCUMENT: dict[str, Any] = {
    "encoder": {
        "kind": "vit",
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
        "heads": 4,
        "hidden": 48,
        "activation": "gelu",
        "norm_eps": 1e-5,
        "features": {"layer": -1},
    },
    "adapter": {
        "kind": "perceiver_resampler",
        "queries": 5,
        "layers": 2,
        "width": 32,
        "heads": 2,
        "head_dim": 12,
        "activation": "relu",
        "qk_norm": "layer",
        "final_norm": True,
    },
    "fusion": {
        "kind": "gated_cross_attention",
        "every": 2,
        "hidden": 96,
        "norm": "rms",
        "norm_eps": 1e-6,
        "activation": "silu",
        "gated": True,
        "qk_norm": "rms",
        "visual_projection": False,
    },
    "language": {
        "kind": "decoder",
        "width": 64,
        "layers": 4,
        "heads": 4,
        "hidden": 96,
        "vocabulary": WORDS,
        "added_vocabulary": 2,
        "context": 2048,
        "norm_eps": 1e-6,
    },
    "token_budget": {"images": 4, "text": 128},
}


def config(**changes: Any) -> IdeficsConfig:
    """The reference's configuration of DOCUMENT; keys of the resampler start with perceiver__."""
    parts: dict[str, dict[str, Any]] = {"vision": {}, "perceiver": {}, "": {}}
    for key, value in changes.items():
        part, _, rest = key.partition("__")
        parts[part if rest else ""][rest or key] = value
    return IdeficsConfig(
        vision_config={
            "embed_dim": 32,
            "image_size": 32,
            "patch_size": 8,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            **parts["vision"],
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 12,
            "qk_layer_norms_perceiver": True,
            **parts["perceiver"],
        },
        **{
            "vocab_size": WORDS,
            "additional_vocab_size": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "cross_layer_interval": 2,
            "qk_layer_norms": True,
            "use_resampler": True,
            "freeze_text_layers": False,
            "freeze_vision_layers": False,
            **parts[""],
        },
    )


class Pair:
    """A reference, its checkpoint, and our model loaded from it."""

    def __init__(self, folder: Path, document: dict[str, Any], **changes: Any) -> None:
        self.document = document
        self.folder = folder
        self.reference: Any = IdeficsForVisionText2Text(config(**changes))
        randomise(self.reference)
        saved(self.reference, folder)
        self.ours: Any = loaded(document, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("idefics"), DOCUMENT)


def row(*parts: int) -> Tensor:
    """A row of ids: `n` stands for n words, 0 for an image."""
    pieces = [torch.randint(3, WORDS, (n,)) if n else torch.tensor([IMAGE]) for n in parts]
    return torch.cat(pieces)[None]


def last_image(ids: Tensor, images: int) -> Tensor:
    """Who sees which image, by walking along each row: the last one so far."""
    mask = torch.zeros(*ids.shape, images, dtype=torch.long)
    for b, line in enumerate(ids.tolist()):
        number = -1
        for t, token in enumerate(line):
            number += token == IMAGE
            if number >= 0:
                mask[b, t, number] = 1
    return mask


def one_image() -> dict[str, Tensor]:
    """Words stand before the image and see none."""
    torch.manual_seed(1)
    ids = row(4, 0, 6)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 1, 3, 32, 32),
        "image_attention_mask": last_image(ids, 1),
    }


def interleaved() -> dict[str, Tensor]:
    torch.manual_seed(2)
    ids = row(3, 0, 2, 0, 0, 5)
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 3, 32, 32),
        "image_attention_mask": last_image(ids, 3),
    }


def any_mask() -> dict[str, Tensor]:
    """Each word sees images of its own choice: none, one or several."""
    torch.manual_seed(3)
    ids = row(9)
    mask = torch.randint(0, 2, (1, 9, 3))
    mask[:, 4] = 0
    mask[:, 5] = 1
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 3, 3, 32, 32),
        "image_attention_mask": mask,
    }


def padded(side: str) -> dict[str, Tensor]:
    """Two rows, the second one image and some words shorter."""
    torch.manual_seed(4)
    long, short = row(3, 0, 2, 0, 5), row(4, 0, 3)
    gap = long.shape[1] - short.shape[1]
    fill = (gap, 0) if side == "left" else (0, gap)
    ids = torch.cat((long, torch.nn.functional.pad(short, fill, value=1)))
    kept = torch.nn.functional.pad(torch.ones_like(short), fill)
    return {
        "input_ids": ids,
        "attention_mask": torch.cat((torch.ones_like(long), kept)),
        "pixel_values": torch.randn(2, 2, 3, 32, 32),
        "image_attention_mask": last_image(ids, 2),
    }


def extending(reference: Any) -> Callable[..., Any]:
    """The reference with a mask that grows with the sequence: new words see what the last saw."""

    def call(**inputs: Any) -> Any:
        mask = inputs.pop("image_attention_mask")
        new = inputs["input_ids"].shape[1] - mask.shape[1]
        mask = torch.cat((mask, mask[:, -1:].expand(-1, new, -1)), dim=1)
        return reference(**inputs, image_attention_mask=mask)

    return call


FIRST = ("pixel_values", "image_attention_mask")
"""What is given with the prompt only."""


@pytest.mark.parametrize("inputs", [one_image, interleaved, any_mask])
def test_logits(pair: Pair, inputs: Any) -> None:
    assert_parity(pair.reference, pair.ours, inputs())
    assert_image_matters(pair.ours, inputs())


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_a_padded_batch(pair: Pair, side: str) -> None:
    inputs = padded(side)
    assert_parity(pair.reference, pair.ours, inputs, rows=inputs["attention_mask"])


@pytest.mark.parametrize("inputs", [one_image, interleaved, lambda: padded("left")])
def test_the_mask_follows_from_the_image_tokens(pair: Pair, inputs: Any) -> None:
    """Without a mask, a token sees the last image before it."""
    given = inputs()
    bare = {name: value for name, value in given.items() if name != "image_attention_mask"}
    rows = given.get("attention_mask")
    assert_parity(pair.reference, pair.ours, given, our_inputs=bare, rows=rows)


def test_all_previous_images(pair: Pair) -> None:
    given = interleaved()
    given["image_attention_mask"] = last_image(given["input_ids"], 3).cummax(dim=1).values
    bare = {name: value for name, value in given.items() if name != "image_attention_mask"}
    ours = mutant(pair.ours, changed(DOCUMENT, "fusion.attend", "all_previous"))
    assert_parity(pair.reference, ours, given, our_inputs=bare)
    assert_caught(pair.reference, pair.ours, given, our_inputs=bare)


def test_no_image(pair: Pair) -> None:
    """The reference needs a picture; nobody sees it."""
    torch.manual_seed(5)
    ids = row(8)
    given = {
        "input_ids": ids,
        "pixel_values": torch.randn(1, 1, 3, 32, 32),
        "image_attention_mask": torch.zeros(1, 8, 1, dtype=torch.long),
    }
    assert_parity(pair.reference, pair.ours, given)
    assert_parity(pair.reference, pair.ours, given, our_inputs={"input_ids": ids})
    expected = greedy_reference(extending(pair.reference), given)
    assert torch.equal(greedy_ours(pair.ours, {"input_ids": ids}), expected)


@pytest.mark.parametrize("inputs", [one_image, interleaved, any_mask, lambda: padded("left")])
def test_greedy_tokens_with_the_cache(pair: Pair, inputs: Any) -> None:
    expected = greedy_reference(extending(pair.reference), inputs())
    assert len(expected.unique()) > 1
    assert torch.equal(greedy_ours(pair.ours, inputs(), images=FIRST), expected)


def test_greedy_tokens_are_those_of_generate(pair: Pair) -> None:
    inputs = padded("left")
    prompt = inputs["input_ids"].shape[1]
    generated = pair.reference.generate(
        **inputs, do_sample=False, max_new_tokens=32, min_new_tokens=32, pad_token_id=0
    )
    # `min_new_tokens` keeps the end-of-sequence word out, so it is kept out of ours too.
    banned = pair.reference.generation_config.eos_token_id
    embed_head = pair.ours.head.forward

    def without_end(*args: Any) -> Tensor:
        logits = embed_head(*args)
        logits[..., banned] = -torch.inf
        return logits

    pair.ours.head.forward = without_end
    try:
        ours = greedy_ours(pair.ours, inputs, images=FIRST)
    finally:
        del pair.ours.head.forward
    assert torch.equal(generated[:, prompt:], ours)


def test_logits_of_each_step_with_the_cache(pair: Pair) -> None:
    """Words one by one after a prompt have the logits that the whole sequence has."""
    inputs = padded("left")
    words = torch.randint(3, WORDS, (2, 5))
    whole = {**inputs, "input_ids": torch.cat((inputs["input_ids"], words), dim=1)}
    whole["attention_mask"] = torch.cat((inputs["attention_mask"], torch.ones_like(words)), dim=1)
    mask = inputs["image_attention_mask"]
    whole["image_attention_mask"] = torch.cat((mask, mask[:, -1:].expand(-1, 5, -1)), dim=1)
    expected, noise = reference_with_noise(pair.reference, whole, whole["attention_mask"])
    prompt = inputs["input_ids"].shape[1]
    state = {**inputs, "cache": pair.ours.new_cache()}
    logits_of(pair.ours, state)
    for end in range(prompt + 1, prompt + 6):
        state = {
            "input_ids": whole["input_ids"][:, end - 1 : end],
            "attention_mask": whole["attention_mask"][:, :end],
            "cache": state["cache"],
        }
        got = logits_of(pair.ours, state)[:, 0]
        assert distance(got, expected[:, end - 1]) <= max(1e-5, 2 * noise)


def test_gradients(tmp_path: Path) -> None:
    """Without added words: the reference's own loss does not count them."""
    pair = Pair(
        tmp_path, changed(DOCUMENT, "language.added_vocabulary", 0), additional_vocab_size=0
    )
    inputs = any_mask()
    labels = inputs["input_ids"].clone()
    labels[:, :2] = -100
    compared = assert_gradients(pair.reference, pair.ours, pair.folder, inputs, labels)
    everything = {name for name, _ in pair.ours.named_parameters()}
    assert everything - compared == {"encoder.post_norm.weight", "encoder.post_norm.bias"}


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no qk norm in the resampler": (
        {"adapter.qk_norm": None},
        {"perceiver__qk_layer_norms_perceiver": False},
    ),
    "no qk norm in cross-attention": ({"fusion.qk_norm": None}, {"qk_layer_norms": False}),
    "no qk norm at all": (
        {"adapter.qk_norm": None, "fusion.qk_norm": None},
        {"perceiver__qk_layer_norms_perceiver": False, "qk_layer_norms": False},
    ),
    "gates for each channel": ({"fusion.gate_per_channel": True}, {"alpha_type": "vector"}),
    "a gated block before each layer": ({"fusion.every": 1}, {"cross_layer_interval": 1}),
    "one gated block": ({"fusion.every": 4}, {"cross_layer_interval": 4}),
    "no added words": (
        {"language.vocabulary": 92, "language.added_vocabulary": 0},
        {"vocab_size": 92, "additional_vocab_size": 0},
    ),
    "a tied head": ({"language.tied_head": True}, {"tie_word_embeddings": True}),
    "another eps": (
        {"language.norm_eps": 1e-5, "fusion.norm_eps": 1e-5},
        {"rms_norm_eps": 1e-5},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    ours, theirs = VARIANTS[name]
    document = DOCUMENT
    for path, value in ours.items():
        document = changed(document, path, value)
    pair = Pair(tmp_path, document, **theirs)
    assert_parity(pair.reference, pair.ours, interleaved())
    assert_image_matters(pair.ours, interleaved())
    expected = greedy_reference(extending(pair.reference), interleaved())
    assert torch.equal(greedy_ours(pair.ours, interleaved(), images=FIRST), expected)


DESIGN_MISTAKES: dict[str, tuple[str, Any]] = {
    "quick_gelu in the encoder": ("encoder.activation", "quick_gelu"),
    "tanh gelu in the encoder": ("encoder.activation", "gelu_tanh"),
    "post_layernorm applied": ("encoder.features", {"layer": -1, "norm": True}),
    "the class token dropped": ("encoder.features", {"layer": -1, "drop_cls": True}),
    "features of the last layer but one": ("encoder.features", {"layer": -2}),
    "pre_layrnorm skipped": ("encoder.pre_norm", False),
    "no qk norm in the resampler": ("adapter.qk_norm", None),
    "an RMS qk norm in the resampler": ("adapter.qk_norm", "rms"),
    "gelu in the resampler": ("adapter.activation", "gelu"),
    "squared relu in the resampler": ("adapter.activation", "relu_squared"),
    "no final norm in the resampler": ("adapter.final_norm", False),
    "eps of the resampler": ("adapter.norm_eps", 1e-4),
    "another interval": ("fusion.every", 3),
    "no qk norm in cross-attention": ("fusion.qk_norm", None),
    "gelu in the gated MLP": ("fusion.activation", "gelu"),
    "eps of cross-attention": ("fusion.norm_eps", 1e-4),
    "eps of the language model": ("language.norm_eps", 1e-4),
    "another rotary base": ("language.positions", {"kind": "rotary", "base": 500000.0}),
}


@pytest.mark.parametrize("name", DESIGN_MISTAKES)
def test_a_mistake_in_the_design_is_caught(pair: Pair, name: str) -> None:
    """By the logits, and before that by config.json."""
    document = changed(DOCUMENT, *DESIGN_MISTAKES[name])
    assert_caught(pair.reference, mutant(pair.ours, document), interleaved())
    with pytest.raises(UsageError, match=r"config\.json|unexpected"):
        loaded(document, pair.folder)


def _resampler(source: Callable[[Any, Tensor, Tensor, Tensor], Tensor]) -> Any:
    """A resampler block whose keys and values are made of something else."""

    def forward(self: Any, latents: Tensor, features: Tensor) -> Tensor:
        inner = self.latent_norm(latents)
        key_value = self.attention.key_value(source(self, features, latents, inner))
        latents = latents + self.attention(inner, key_value)
        return latents + self.mlp(self.mlp_norm(latents))

    return forward


def _gated(
    *,
    attention_gate: Callable[[Tensor], Tensor] = torch.tanh,
    dense_gate: Callable[[Tensor], Tensor] = torch.tanh,
    zeroed: bool = True,
    masked: bool = True,
    rotate: bool = False,
    dense_blind: bool = True,
) -> Any:
    """A gated block with one thing otherwise."""

    def forward(self: Any, x: Tensor, memory: Any, seen: Tensor) -> Tensor:
        sighted = seen.any(dim=-1, keepdim=True)
        places = torch.arange(x.shape[1]).expand(x.shape[0], -1)
        rotary = Rotary(head_dim=16, base=10000.0)(places, x.dtype) if rotate else None
        mask = seen | ~sighted if masked else None
        attended = self.attention(self.attention_norm(x), memory, mask=mask, rotary=rotary)
        if zeroed:
            attended = attended.masked_fill(~sighted[:, 0], 0.0)
        x = x + attention_gate(self.attention_gate) * attended
        dense = dense_gate(self.dense_gate) * self.mlp(self.mlp_norm(x))
        return x + (dense if dense_blind else dense.masked_fill(~sighted[:, 0], 0.0))

    return forward


def _self_attention_norm(self: Any, source: Tensor, rotary: Any = None) -> Any:
    """An RMS norm of the keys in self-attention too."""
    key, value = _key_value(self, source, None)
    if self.key_norm is None:
        key = key * torch.rsqrt(key.square().mean(-1, keepdim=True) + 1e-6)
    return (key if rotary is None else rotate(key, rotary)), value


_key_value = Attention.key_value


def _tiled(self: Tensor, repeats: int, dim: int) -> Tensor:
    """The mask repeated as a whole, not for each image's own latents."""
    return self.repeat(*(1 for _ in range(self.ndim - 1)), repeats)


def _one_word_for_all(self: Any, ids: Tensor) -> Tensor:
    """Added words looked up in the ordinary embedding."""
    return self.embedding(ids.clamp(max=WORDS - 1))


CODE_MISTAKES: dict[str, tuple[Any, str, Any]] = {
    "the faithful resampler": (
        ResamplerBlock,
        "forward",
        _resampler(lambda s, f, raw, normed: torch.cat((s.source_norm(f), normed), dim=1)),
    ),
    "the faithful gated block": (GatedBlock, "forward", _gated()),
    "latents not among the keys": (
        ResamplerBlock,
        "forward",
        _resampler(lambda s, f, raw, normed: s.source_norm(f)),
    ),
    "latents not normed among the keys": (
        ResamplerBlock,
        "forward",
        _resampler(lambda s, f, raw, normed: torch.cat((s.source_norm(f), raw), dim=1)),
    ),
    "features not normed": (
        ResamplerBlock,
        "forward",
        _resampler(lambda s, f, raw, normed: torch.cat((f, normed), dim=1)),
    ),
    "one norm for features and latents": (
        ResamplerBlock,
        "forward",
        _resampler(lambda s, f, raw, normed: torch.cat((s.latent_norm(f), normed), dim=1)),
    ),
    "no tanh on the attention's gate": (
        GatedBlock,
        "forward",
        _gated(attention_gate=lambda gate: gate),
    ),
    "no tanh on the dense gate": (GatedBlock, "forward", _gated(dense_gate=lambda gate: gate)),
    "a sigmoid for a gate": (GatedBlock, "forward", _gated(dense_gate=torch.sigmoid)),
    "no zeroes where no image is seen": (GatedBlock, "forward", _gated(zeroed=False)),
    "no mask": (GatedBlock, "forward", _gated(masked=False)),
    "rotary positions in cross-attention": (GatedBlock, "forward", _gated(rotate=True)),
    "the MLP silent where no image is seen": (GatedBlock, "forward", _gated(dense_blind=False)),
    "qk norm in self-attention too": (Attention, "key_value", _self_attention_norm),
    "the mask tiled over the latents": (Tensor, "repeat_interleave", _tiled),
    "added words without an embedding of their own": (Decoder, "embed", _one_word_for_all),
}


@pytest.mark.parametrize("name", CODE_MISTAKES)
def test_a_mistake_in_the_code_is_caught(
    pair: Pair, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a faithful copy of the code that the mistakes are made in is not."""
    inputs = interleaved()
    expected, noise = reference_with_noise(pair.reference, inputs, None)
    where, attribute, replacement = CODE_MISTAKES[name]
    monkeypatch.setattr(where, attribute, replacement)
    error = distance(logits_of(pair.ours, inputs), expected)
    assert (error <= max(1e-5, 2 * noise)) == name.startswith("the faithful")


class Postponed(torch.nn.Module):
    """A gated block that lets everything pass and keeps what it was asked."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.attention = block.attention
        self.asked: tuple[Any, Any] | None = None

    def forward(self, x: Tensor, memory: Any, seen: Any) -> Tensor:
        self.asked = (memory, seen)
        return x


def test_a_gated_block_after_its_layer_is_caught(pair: Pair) -> None:
    broken: Any = mutant(pair.ours, DOCUMENT)
    layer = broken.language.layer
    blocks = [Postponed(block) for block in broken.gated_blocks]
    broken.gated_blocks = torch.nn.ModuleList(blocks)

    def late(index: int, x: Tensor, context: Any, cache: Any) -> Tensor:
        x = layer(index, x, context, cache)
        if index % 2:
            return x
        postponed = blocks[index // 2]
        return postponed.block(x, *postponed.asked)

    broken.language.layer = late
    assert_caught(pair.reference, broken, interleaved())


def test_added_words_without_a_head_of_their_own_are_caught(pair: Pair) -> None:
    broken = mutant(pair.ours, DOCUMENT)
    with torch.no_grad():
        broken.head.added_projection.weight.copy_(broken.head.projection.weight[-2:])
    assert_caught(pair.reference, broken, interleaved())


def test_a_layer_norm_of_queries_and_keys_in_cross_attention_is_caught(pair: Pair) -> None:
    """Scales alike, centred: the shift of a LayerNorm stays zero."""
    broken = mutant(pair.ours, changed(DOCUMENT, "fusion.qk_norm", None))
    like = mutant(pair.ours, DOCUMENT)
    for block, twin in zip(like.gated_blocks, broken.gated_blocks, strict=True):
        for name in ("query_norm", "key_norm"):
            norm = torch.nn.LayerNorm(16, eps=1e-6)
            with torch.no_grad():
                norm.weight.copy_(getattr(block.attention, name).weight)
            setattr(twin.attention, name, norm)
    assert_caught(pair.reference, broken, interleaved())


def test_images_and_image_tokens_must_agree(pair: Pair) -> None:
    inputs = interleaved()
    del inputs["image_attention_mask"]
    inputs["pixel_values"] = inputs["pixel_values"][:, :2]
    with pytest.raises(ValueError, match=r"3 image tokens .* 2 images in each row"):
        pair.ours(**inputs)


def test_a_mask_needs_images(pair: Pair) -> None:
    inputs = interleaved()
    del inputs["pixel_values"]
    with pytest.raises(ValueError, match="image_attention_mask is given, but no pixel_values"):
        pair.ours(**inputs)
