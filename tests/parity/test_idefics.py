"""Idefics against transformers' IdeficsForVisionText2Text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from idefics_pair import (
    DOCUMENT,
    FIRST,
    WORDS,
    Pair,
    any_mask,
    extending,
    interleaved,
    last_image,
    one_image,
    padded,
    row,
)
from oracle import (
    assert_caught,
    assert_gradients,
    assert_image_matters,
    assert_parity,
    changed,
    distance,
    greedy_ours,
    greedy_reference,
    logits_of,
    mutant,
    reference_with_noise,
)
from torch import Tensor


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("idefics"), DOCUMENT)


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
