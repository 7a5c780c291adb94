"""`weights:` of one part: folders that transformers writes for a single tower or text model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import arch_of, distance, randomise, saved
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from vlmc.builder.checkpoint import load_part
from vlmc.builder.model import instantiate
from vlmc.diagnostics import UsageError
from vlmc.ir import Role

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
ENCODER = {
    "kind": "vit",
    "image_size": 32,
    "patch_size": 8,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "hidden": 64,
    "activation": "quick_gelu",
    "features": {"norm": True},
}
LLAMA = {
    "kind": "decoder",
    "width": 48,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "hidden": 64,
    "vocabulary": 99,
    "context": 2048,
}
OPT = {
    "kind": "decoder",
    "width": 48,
    "layers": 2,
    "heads": 4,
    "hidden": 64,
    "vocabulary": 99,
    "context": 64,
    "norm": "layer",
    "norm_eps": 1e-5,
    "activation": "relu",
    "gated": False,
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "positions": {"kind": "learned", "offset": 2},
    "tied_head": True,
}
T5 = {
    "kind": "encoder_decoder",
    "width": 48,
    "layers": 2,
    "heads": 4,
    "head_dim": 12,
    "hidden": 64,
    "vocabulary": 99,
    "activation": "gelu_tanh",
    "gated": True,
    "tied_head": True,
}


def clip() -> Any:
    return CLIPModel(
        CLIPConfig(
            vision_config=VISION,
            text_config={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
            },
        )
    )


def clip_vision() -> Any:
    return CLIPVisionModel(CLIPVisionConfig(**VISION))


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=99,
        )
    )


def opt() -> Any:
    return OPTForCausalLM(
        OPTConfig(
            hidden_size=48,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=99,
            max_position_embeddings=64,
            word_embed_proj_dim=48,
        )
    )


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(
            d_model=48,
            d_kv=12,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            vocab_size=99,
            feed_forward_proj="gated-gelu",
        )
    )


PARTS: dict[str, tuple[Any, Role, dict[str, Any]]] = {
    "clip": (clip, "encoder", LLAMA),
    "clip's vision tower": (clip_vision, "encoder", LLAMA),
    "llama": (llama, "language", LLAMA),
    "opt": (opt, "language", OPT),
    "t5": (t5, "language", T5),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_from_a_folder_of_its_own(name: str, tmp_path: Path) -> None:
    make, role, language = PARTS[name]
    reference = make()
    randomise(reference)
    saved(reference, tmp_path)
    fusion = "prefix" if language is T5 else "placeholder"
    arch = arch_of(
        {
            "encoder": ENCODER,
            "adapter": {"kind": "mlp"},
            "fusion": {"kind": fusion},
            "language": language,
            "token_budget": {"images": 1, "text": 32},
        }
    )
    model: Any = instantiate(arch).eval()
    load_part(model, arch, role, tmp_path)
    loaded = {name.split(".")[0] for name, p in model.named_parameters() if not p.is_meta}
    left = {name.split(".")[0] for name, p in model.named_parameters() if p.is_meta}
    has_head = role == "language" and language is LLAMA
    assert loaded == ({role, "head"} if has_head else {role})
    assert not loaded & left
    with torch.no_grad():
        if role == "encoder":
            pixels = torch.randn(2, 3, 32, 32)
            tower = getattr(reference, "vision_model", reference)
            expected = tower(pixels).last_hidden_state
            assert distance(model.encoder(pixels), tower.post_layernorm(expected)) <= 1e-5
        else:
            ids = torch.randint(3, 98, (2, 7))
            more = {"decoder_input_ids": ids[:, :3]} if language is T5 else {}
            expected = reference(input_ids=ids, **more).logits
            assert distance(model(input_ids=ids, **more).logits, expected) <= 1e-5
    other: Role = "language" if role == "encoder" else "encoder"
    with pytest.raises(UsageError, match="missing on disk"):
        load_part(model, arch, other, tmp_path)
