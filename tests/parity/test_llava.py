"""LLaVA against transformers' LlavaForConditionalGeneration."""

from __future__ import annotations

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
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from vlmc.diagnostics import UsageError

VOCABULARY = 99
IMAGE = 98

DOCUMENT: dict[str, Any] = {
    "encoder": {
        "kind": "vit",
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 3,
        "heads": 4,
        "hidden": 64,
        "activation": "quick_gelu",
        "norm_eps": 1e-5,
        "features": {"layer": -2, "drop_cls": True},
        "frozen": True,
    },
    "adapter": {"kind": "mlp", "layers": 2, "activation": "gelu"},
    "fusion": {"kind": "placeholder", "token": IMAGE},
    "language": {
        "kind": "decoder",
        "width": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "hidden": 96,
        "vocabulary": VOCABULARY,
        "context": 2048,
        "norm_eps": 1e-5,
    },
    "token_budget": {"images": 4, "text": 128},
}


def config(**changes: Any) -> LlavaConfig:
    """The reference's configuration of DOCUMENT; keys of the towers start with vision_ or text_."""
    towers: dict[str, dict[str, Any]] = {"vision": {}, "text": {}, "": {}}
    for key, value in changes.items():
        tower, _, rest = key.partition("__")
        towers[tower if rest else ""][rest or key] = value
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            **{
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
                "projection_dim": 32,
                **towers["vision"],
            }
        ),
        text_config=LlamaConfig(
            **{
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": VOCABULARY,
                "rms_norm_eps": 1e-5,
                **towers["text"],
            }
        ),
        **{"image_token_index": IMAGE, "image_seq_length": 16, **towers[""]},
    )


class Pair:
    """A reference, its checkpoint, and our model loaded from it."""

    def __init__(self, folder: Path, document: dict[str, Any], **changes: Any) -> None:
        self.document = document
        self.folder = folder
        self.reference: Any = LlavaForConditionalGeneration(config(**changes))
        randomise(self.reference)
        saved(self.reference, folder)
        self.ours = loaded(document, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("llava"), DOCUMENT)


def sequence(*parts: int, tokens: int = 16) -> Tensor:
    """A row of ids: `n` stands for n words, 0 for an image."""
    pieces = [torch.randint(3, IMAGE, (n,)) if n else torch.full((tokens,), IMAGE) for n in parts]
    return torch.cat(pieces)[None]


def one_image(tokens: int = 16) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "input_ids": sequence(4, 0, 6, tokens=tokens),
        "pixel_values": torch.randn(1, 3, 32, 32),
    }


def interleaved() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {
        "input_ids": sequence(3, 0, 2, 0, 0, 5),
        "pixel_values": torch.randn(3, 3, 32, 32),
    }


def text_only() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {"input_ids": sequence(12)}


def padded(side: str) -> dict[str, Tensor]:
    """Two rows, the second one image shorter."""
    torch.manual_seed(4)
    long, short = sequence(3, 0, 2, 0, 5), sequence(4, 0, 3)
    gap = long.shape[1] - short.shape[1]
    fill = (gap, 0) if side == "left" else (0, gap)
    short_mask = torch.nn.functional.pad(torch.ones_like(short), fill)
    return {
        "input_ids": torch.cat((long, torch.nn.functional.pad(short, fill, value=1))),
        "attention_mask": torch.cat((torch.ones_like(long), short_mask)),
        "pixel_values": torch.randn(3, 3, 32, 32),
    }


@pytest.mark.parametrize("inputs", [one_image, interleaved, text_only])
def test_logits(pair: Pair, inputs: Any) -> None:
    assert_parity(pair.reference, pair.ours, inputs())


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_a_padded_batch(pair: Pair, side: str) -> None:
    inputs = padded(side)
    assert_parity(pair.reference, pair.ours, inputs, rows=inputs["attention_mask"])


def test_another_image_changes_the_logits(pair: Pair) -> None:
    assert_image_matters(pair.ours, one_image())
    assert_image_matters(pair.ours, interleaved())


@pytest.mark.parametrize("inputs", [one_image, interleaved, text_only])
def test_greedy_tokens_with_the_cache(pair: Pair, inputs: Any) -> None:
    expected = greedy_reference(pair.reference, inputs())
    assert len(expected.unique()) > 2
    assert torch.equal(greedy_ours(pair.ours, inputs()), expected)


def test_greedy_tokens_of_a_padded_batch(pair: Pair) -> None:
    """Batch mates of unlike lengths, padded on the left, give what each gives alone."""
    inputs = padded("left")
    expected = greedy_reference(pair.reference, inputs)
    assert torch.equal(greedy_ours(pair.ours, inputs), expected)


def test_logits_of_each_step_with_the_cache(pair: Pair) -> None:
    """Words one by one after a prompt have the logits that the whole sequence has."""
    inputs = padded("left")
    words = torch.randint(3, IMAGE, (2, 5))
    whole = {**inputs, "input_ids": torch.cat((inputs["input_ids"], words), dim=1)}
    whole["attention_mask"] = torch.cat((inputs["attention_mask"], torch.ones_like(words)), dim=1)
    expected, noise = reference_with_noise(pair.reference, whole, whole["attention_mask"])
    prompt = inputs["input_ids"].shape[1]
    state = {**inputs, "cache": pair.ours.new_cache()}
    logits_of(pair.ours, state)
    for step in range(5):
        end = prompt + step + 1
        state = {
            "input_ids": whole["input_ids"][:, end - 1 : end],
            "attention_mask": whole["attention_mask"][:, :end],
            "cache": state["cache"],
        }
        got = logits_of(pair.ours, state)[:, 0]
        assert distance(got, expected[:, end - 1]) <= max(1e-5, 2 * noise)


def test_gradients_of_the_trainable_parts(pair: Pair) -> None:
    inputs = interleaved()
    labels = inputs["input_ids"].clone()
    labels[:, :5] = -100
    compared = assert_gradients(pair.reference, pair.ours, pair.folder, inputs, labels)
    trainable = {name for name, p in pair.ours.named_parameters() if p.requires_grad}
    assert compared == trainable
    assert all(not name.startswith("encoder.") for name in compared)
    assert any(name.startswith("adapter.") for name in compared)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a list of feature layers": (
        {"encoder.features": {"layer": [-3, -2, 3], "drop_cls": True}},
        {"vision_feature_layer": [-3, -2, 3]},
    ),
    "the class token kept": (
        {"encoder.features": {"layer": -1, "drop_cls": False}},
        {
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_seq_length": 17,
        },
    ),
    "no bias in the projector": ({"adapter.bias": False}, {"multimodal_projector_bias": False}),
    "one key/value head": ({"language.kv_heads": 1}, {"text__num_key_value_heads": 1}),
    "no grouped heads": ({"language.kv_heads": 4}, {"text__num_key_value_heads": 4}),
    "biases": (
        {"language.qkv_bias": True, "language.output_bias": True, "language.mlp_bias": True},
        {"text__attention_bias": True, "text__mlp_bias": True},
    ),
    "another rotary base": (
        {"language.positions": {"kind": "rotary", "base": 500000.0}},
        {"text__rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "a tied head": ({"language.tied_head": True}, {"tie_word_embeddings": True}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    ours, theirs = VARIANTS[name]
    document = DOCUMENT
    for path, value in ours.items():
        document = changed(document, path, value)
    pair = Pair(tmp_path, document, **theirs)
    inputs = one_image(tokens=theirs.get("image_seq_length", 16))
    assert_parity(pair.reference, pair.ours, inputs)
    assert_image_matters(pair.ours, inputs)


DIALECTS: dict[str, list[tuple[str, str]]] = {
    "as in memory": [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ],
    "as written by 4.57": [("vision_tower.", "vision_tower.vision_model.")],
}


@pytest.mark.parametrize("name", DIALECTS)
def test_dialects_on_disk(pair: Pair, name: str, tmp_path: Path) -> None:
    tensors = load_file(pair.folder / "model.safetensors")
    for before, after in DIALECTS[name]:
        tensors = {
            after + key.removeprefix(before) if key.startswith(before) else key: value
            for key, value in tensors.items()
        }
    assert tensors.keys() != load_file(pair.folder / "model.safetensors").keys()
    (tmp_path / "config.json").write_text((pair.folder / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    assert_parity(pair.reference, loaded(DOCUMENT, tmp_path), one_image())


MISTAKES: dict[str, dict[str, Any]] = {
    "features of the last layer": {"encoder.features": {"layer": -1, "drop_cls": True}},
    "features before the first block": {"encoder.features": {"layer": 0, "drop_cls": True}},
    "hidden state 0 is the first block's": {"encoder.features": {"layer": -3, "drop_cls": True}},
    "post_layernorm applied": {
        "encoder.features": {"layer": -2, "drop_cls": True, "norm": True},
    },
    "pre_layrnorm skipped": {"encoder.pre_norm": False},
    "plain gelu in the encoder": {"encoder.activation": "gelu"},
    "encoder eps": {"encoder.norm_eps": 1e-6},
    "tanh gelu in the projector": {"adapter.activation": "gelu_tanh"},
    "language eps": {"language.norm_eps": 1e-6},
    "rotary base": {"language.positions": {"kind": "rotary", "base": 10001.0}},
    "gelu in the language model": {"language.activation": "gelu"},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_design_is_caught(pair: Pair, name: str) -> None:
    """By the logits, and before that by config.json, wherever that says it."""
    document = DOCUMENT
    for path, value in MISTAKES[name].items():
        document = changed(document, path, value)
    assert_caught(pair.reference, mutant(pair.ours, document), one_image())
    with pytest.raises(UsageError, match=r"config\.json|unexpected"):
        loaded(document, pair.folder)


def test_the_class_token_kept_is_caught(pair: Pair) -> None:
    """Row 0 kept and the last patch dropped: the counts agree, the features do not."""
    broken = mutant(pair.ours, changed(DOCUMENT, "encoder.features", {"layer": -2}))
    whole = broken.encoder.forward
    broken.encoder.forward = lambda pixels: whole(pixels)[:, :-1]
    assert_caught(pair.reference, broken, one_image())


def _interleaved_rotation(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The rotation of GPT-J: neighbouring channels are a pair."""
    cos, sin = (half.chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1) for half in rotary)
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


def _groups_in_turn(self: Tensor, repeats: int, dim: int) -> Tensor:
    """Key/value heads repeated as a whole, not each for its own group of queries."""
    return self.repeat(*(repeats if d == dim else 1 for d in range(self.ndim)))


@pytest.mark.parametrize(
    ("target", "replacement"),
    [
        ("vlmc.components.shared.attention.rotate", _interleaved_rotation),
        ("torch.Tensor.repeat_interleave", _groups_in_turn),
    ],
    ids=["rotation of neighbouring channels", "key/value heads in turn"],
)
def test_a_mistake_in_the_code_is_caught(
    pair: Pair, target: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = one_image()
    expected, noise = reference_with_noise(pair.reference, inputs, None)
    monkeypatch.setattr(target, replacement)
    assert distance(logits_of(pair.ours, inputs), expected) > max(1e-5, 2 * noise)


def test_a_bias_of_the_patches_would_not_load(pair: Pair) -> None:
    """CLIP's patch convolution has no bias."""
    with pytest.raises(UsageError, match=r"encoder\.patch_embedding\.bias"):
        loaded(changed(DOCUMENT, "encoder.patch_bias", True), pair.folder)


def test_placeholders_must_be_as_many_as_visual_tokens(pair: Pair) -> None:
    inputs = one_image()
    inputs["input_ids"] = inputs["input_ids"][:, 5:]
    with pytest.raises(ValueError, match="15 placeholders in input_ids but 16 visual tokens"):
        pair.ours(**inputs)
