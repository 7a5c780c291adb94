"""BLIP-2 with T5, an encoder-decoder, against transformers' Blip2ForConditionalGeneration."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import (
    STEPS,
    arch_of,
    assert_caught,
    assert_gradients,
    assert_image_matters,
    assert_parity,
    changed,
    distance,
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
    T5Config,
)

from vlmc.diagnostics import UsageError

VOCABULARY = 99
IMAGE = 98
QUERIES = 5
WIDTH = 48

DOCUMENT: dict[str, Any] = {
    "encoder": {
        "kind": "vit",
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 2,
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
        "layers": 3,
        "cross_attention_every": 2,
        "width": 48,
        "heads": 4,
        "hidden": 80,
    },
    "fusion": {"point": "mid", "kind": "query_prefix", "token": IMAGE},
    "language": {
        "kind": "encoder_decoder",
        "width": WIDTH,
        "layers": 3,
        "decoder_layers": 2,
        "heads": 4,
        "head_dim": 8,  # 4 x 8 is not the width
        "hidden": 64,
        "vocabulary": VOCABULARY,
        "positions": {"buckets": 8, "max_distance": 10},
        "start_token": 2,  # not the padding, which the public ones use for both
    },
    "token_budget": {"images": 3, "text": 64},
}

V1_0: dict[str, Any] = {
    **DOCUMENT,
    "language": {**DOCUMENT["language"], "activation": "relu", "gated": False, "tied_head": True},
}


def config(**text: Any) -> Blip2Config:
    """The reference's configuration of DOCUMENT."""
    return Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=20,
        ),
        text_config=T5Config(
            **{
                "vocab_size": VOCABULARY,
                "d_model": WIDTH,
                "d_kv": 8,
                "d_ff": 64,
                "num_layers": 3,
                "num_decoder_layers": 2,
                "num_heads": 4,
                "relative_attention_num_buckets": 8,
                "relative_attention_max_distance": 10,
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": False,
                "decoder_start_token_id": 2,
                "pad_token_id": 2,
                **text,
            }
        ),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )


class Pair:
    """A reference, its checkpoint in several shards, and our model loaded from it."""

    def __init__(self, folder: Path, document: dict[str, Any], **text: Any) -> None:
        self.folder = folder
        self.document = document
        self.reference: Any = Blip2ForConditionalGeneration(config(**text))
        if not document["language"].get("tied_head"):
            # The reference ties the head that it makes, but keeps one that a checkpoint brings.
            head = nn.Parameter(torch.empty(VOCABULARY, WIDTH))
            self.reference.language_model.lm_head.weight = head
        randomise(self.reference)
        self.reference.save_pretrained(folder, max_shard_size="150KB")
        self.ours: Any = loaded(document, folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("blip2-t5"), DOCUMENT)


@pytest.fixture(scope="module")
def first_version(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """T5 v1.0: a plain ReLU MLP, and a tied head whose input is scaled."""
    folder = tmp_path_factory.mktemp("blip2-t5-v1.0")
    return Pair(folder, V1_0, feed_forward_proj="relu", tie_word_embeddings=True)


def sequence(*parts: int) -> Tensor:
    """A row of ids: `n` stands for n words, 0 for an image."""
    pieces = [torch.randint(3, IMAGE, (n,)) if n else torch.full((QUERIES,), IMAGE) for n in parts]
    return torch.cat(pieces)[None]


def answer(rows: int = 1) -> Tensor:
    return torch.cat((torch.full((rows, 1), 2), torch.randint(3, IMAGE, (rows, 13))), dim=1)


def one_image() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "input_ids": sequence(0, 14),
        "pixel_values": torch.randn(1, 3, 32, 32),
        "decoder_input_ids": answer(),
    }


def interleaved() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return {
        "input_ids": sequence(3, 0, 2, 0, 0, 5),
        "pixel_values": torch.randn(3, 3, 32, 32),
        "decoder_input_ids": answer(),
    }


def padded(side: str) -> dict[str, Tensor]:
    """Two rows, the second one image shorter; their answers are padded on the right."""
    torch.manual_seed(4)
    long, short = sequence(0, 2, 0, 5), sequence(0, 4)
    gap = long.shape[1] - short.shape[1]
    fill = (gap, 0) if side == "left" else (0, gap)
    targets = answer(2)
    target_mask = torch.ones_like(targets)
    target_mask[0, 9:] = 0
    return {
        "input_ids": torch.cat((long, F.pad(short, fill))),
        "attention_mask": torch.cat((torch.ones_like(long), F.pad(torch.ones_like(short), fill))),
        "pixel_values": torch.randn(3, 3, 32, 32),
        "decoder_input_ids": targets,
        "decoder_attention_mask": target_mask,
    }


@pytest.mark.parametrize("inputs", [one_image, interleaved])
@pytest.mark.parametrize("version", ["pair", "first_version"])
def test_logits(version: str, inputs: Any, request: pytest.FixtureRequest) -> None:
    both = request.getfixturevalue(version)
    assert_parity(both.reference, both.ours, inputs())
    assert_image_matters(both.ours, inputs())


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_a_padded_batch(pair: Pair, side: str) -> None:
    inputs = padded(side)
    assert_parity(pair.reference, pair.ours, inputs, rows=inputs["decoder_attention_mask"])


def test_visual_tokens_in_front_of_text_without_placeholders(pair: Pair) -> None:
    torch.manual_seed(5)
    words, mask = sequence(6).repeat(2, 1), torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    ours = {
        "input_ids": words,
        "attention_mask": mask,
        "pixel_values": torch.randn(4, 3, 32, 32),
        "decoder_input_ids": answer(2),
    }
    theirs = {
        **ours,
        "input_ids": F.pad(words, (2 * QUERIES, 0), value=IMAGE),
        "attention_mask": F.pad(mask, (2 * QUERIES, 0), value=1),
    }
    assert_parity(pair.reference, pair.ours, theirs, our_inputs=ours)
    assert_image_matters(pair.ours, ours)


def test_logits_without_an_image(pair: Pair) -> None:
    """The reference always wants an image: its language model is compared by itself."""
    torch.manual_seed(3)
    inputs = {"input_ids": sequence(12), "decoder_input_ids": answer()}
    assert_parity(pair.reference.language_model, pair.ours, inputs)


def test_the_decoder_begins_with_its_start_token(pair: Pair) -> None:
    inputs = one_image()
    first = logits_of(pair.ours, inputs)[:, :1]
    inputs.pop("decoder_input_ids")
    assert distance(logits_of(pair.ours, inputs), first) <= 1e-5
    with pytest.raises(ValueError, match="input_ids may be left out only with a cache"):
        pair.ours(decoder_input_ids=answer())
    with pytest.raises(ValueError, match="one of input_ids, decoder_input_ids and labels"):
        pair.ours(cache=pair.ours.new_cache())


def greedy_reference(reference: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Greedy tokens [batch, STEPS], the whole answer at each step: no cache."""
    state = {k: v for k, v in inputs.items() if k != "decoder_attention_mask"}
    state["decoder_input_ids"] = torch.full((len(inputs["input_ids"]), 1), 2)
    for _ in range(STEPS):
        token = logits_of(reference, state)[:, -1].argmax(-1, keepdim=True)
        state["decoder_input_ids"] = torch.cat((state["decoder_input_ids"], token), dim=1)
    return state["decoder_input_ids"][:, 1:]


def greedy_ours(ours: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Greedy tokens [batch, STEPS]: the prompt once, then one token a step with the cache."""
    prompt = ("input_ids", "attention_mask", "pixel_values")
    state: dict[str, Any] = {k: v for k, v in inputs.items() if k in prompt}
    cache = ours.new_cache()
    new: list[Tensor] = []
    for _ in range(STEPS):
        token = logits_of(ours, {**state, "cache": cache})[:, -1].argmax(-1, keepdim=True)
        new.append(token)
        state = {"decoder_input_ids": token}
    return torch.cat(new, dim=1)


@pytest.mark.parametrize("inputs", [one_image, interleaved, lambda: padded("left")])
def test_greedy_tokens_with_the_cache(pair: Pair, inputs: Any) -> None:
    expected = greedy_reference(pair.reference, inputs())
    assert len(expected.unique()) > 2
    assert torch.equal(greedy_ours(pair.ours, inputs()), expected)


def test_logits_of_each_step_with_the_cache(pair: Pair) -> None:
    inputs = padded("left")
    inputs.pop("decoder_attention_mask")
    expected, noise = reference_with_noise(pair.reference, inputs, None)
    cache = pair.ours.new_cache()
    targets = inputs.pop("decoder_input_ids")
    state: dict[str, Any] = inputs
    for step in range(targets.shape[1]):
        state = {**state, "decoder_input_ids": targets[:, step : step + 1], "cache": cache}
        got = logits_of(pair.ours, state)[:, 0]
        assert distance(got, expected[:, step]) <= max(1e-5, 2 * noise)
        state = {}


def test_gradients_of_the_trainable_parts(pair: Pair) -> None:
    inputs = padded("right")
    labels = inputs.pop("decoder_input_ids")[:, 1:].clone()
    inputs.pop("decoder_attention_mask")
    labels[0, 9:] = -100
    compared = assert_gradients(pair.reference, pair.ours, pair.folder, inputs, labels)
    trainable = {name for name, p in pair.ours.named_parameters() if p.requires_grad}
    assert compared == trainable
    parts = {name.split(".")[0] for name in compared}
    assert parts == {"adapter", "language", "head"}


MISTAKES: dict[str, tuple[str, Any]] = {
    "gelu of erf": ("language.activation", "gelu"),
    "eps": ("language.norm_eps", 1e-5),
    "another distance": ("language.positions", {"buckets": 8, "max_distance": 12}),
    "Q-Former eps": ("adapter.norm_eps", 1e-5),
    "tied head": ("language.tied_head", True),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_design_is_caught(pair: Pair, name: str) -> None:
    """By the logits, and before that by config.json."""
    document = changed(DOCUMENT, *MISTAKES[name])
    with pytest.raises(UsageError, match=r"config\.json"):
        loaded(document, pair.folder)
    assert_caught(pair.reference, mutant(pair.ours, document), one_image())


def test_another_start_token_is_caught(pair: Pair) -> None:
    document = changed(DOCUMENT, "language.start_token", 0)
    with pytest.raises(UsageError, match=r"config\.json .*decoder_start_token_id"):
        loaded(document, pair.folder)
    ours, inputs = mutant(pair.ours, document), one_image()
    expected = logits_of(pair.reference, inputs)[:, :1]
    inputs.pop("decoder_input_ids")
    assert distance(logits_of(ours, inputs), expected) > 1e-2


def test_an_unscaled_tied_head_is_caught(first_version: Pair) -> None:
    broken: Any = mutant(first_version.ours, V1_0)
    broken.head.scale = None
    assert_caught(first_version.reference, broken, one_image())
    # Flan-T5's other sign of it: not tied, hence not scaled.
    config_file = json.loads((first_version.folder / "config.json").read_text())
    assert config_file["text_config"]["scale_decoder_outputs"] is True
    assert arch_of(V1_0).node("head").arguments["scale"] == WIDTH**-0.5
    assert arch_of(DOCUMENT).node("head").arguments["scale"] is None


def _scaled_attention(ours: Any) -> None:
    for layer in (*ours.language.encoder_layers, *ours.language.decoder_layers):
        layer.attention.scale = None


def _scaled_cross_attention(ours: Any) -> None:
    for layer in ours.language.decoder_layers:
        layer.cross.scale = None


def _bias_of_the_first_layer_only(ours: Any) -> None:
    for stack in (ours.language.encoder_layers, ours.language.decoder_layers):
        for layer in list(stack)[1:]:
            whole = layer.forward
            layer.forward = lambda x, *, mask, whole=whole, **more: whole(
                x, mask=mask.masked_fill(mask.isfinite(), 0.0), **more
            )


def _one_direction_in_the_encoder(ours: Any) -> None:
    ours.language.encoder_bias.bidirectional = False


def _both_directions_in_the_decoder(ours: Any) -> None:
    ours.language.decoder_bias.bidirectional = True


def _one_table_for_both(ours: Any) -> None:
    ours.language.decoder_bias.table = ours.language.encoder_bias.table


def _query_to_key_reversed(ours: Any) -> None:
    bias = ours.language.encoder_bias
    whole = bias.forward
    bias.forward = lambda queries, keys: whole(queries, keys).transpose(-1, -2)


def _gate_and_up_exchanged(ours: Any) -> None:
    for layer in ours.language.encoder_layers:
        layer.mlp.gate, layer.mlp.up = layer.mlp.up, layer.mlp.gate


def _encoder_norm_skipped(ours: Any) -> None:
    ours.language.encoder_norm = nn.Identity()


def _layer_norm(ours: Any) -> None:
    for layer in ours.language.decoder_layers:
        layer.mlp_norm.kind = "layer"


BREAKS: dict[str, Any] = {
    "attention scaled": _scaled_attention,
    "cross-attention scaled": _scaled_cross_attention,
    "position bias of the first layer only": _bias_of_the_first_layer_only,
    "encoder bias in one direction": _one_direction_in_the_encoder,
    "decoder bias in both directions": _both_directions_in_the_decoder,
    "one bias table for both stacks": _one_table_for_both,
    "distance reversed": _query_to_key_reversed,
    "gate and up exchanged": _gate_and_up_exchanged,
    "no norm after the encoder": _encoder_norm_skipped,
    "LayerNorm in place of RMSNorm": _layer_norm,
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_mistake_in_the_code_is_caught(pair: Pair, name: str) -> None:
    broken = copy.deepcopy(pair.ours)
    BREAKS[name](broken)
    assert_caught(pair.reference, broken, one_image())


def test_padding_that_the_decoder_sees_is_caught(pair: Pair) -> None:
    """The encoder's mask must reach the cross-attention."""
    inputs = padded("right")
    broken = copy.deepcopy(pair.ours)
    for layer in broken.language.decoder_layers:
        whole = layer.forward
        layer.forward = lambda x, *, memory_mask, whole=whole, **more: whole(x, **more)
    assert_caught(pair.reference, broken, inputs, rows=inputs["decoder_attention_mask"])
