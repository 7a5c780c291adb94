"""The systems that are measured: one small checkpoint of each in the published format, made by
transformers with random weights, and the spec that describes the same design to vlmc."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    OPTConfig,
)

WORDS = 32
"""Words of the prompt, beside the image."""


@dataclass(frozen=True, kw_only=True)
class System:
    """A design of 100 to 300 million parameters, twice: for transformers and for vlmc."""

    name: str
    model: Callable[[], Any]
    document: dict[str, Any]
    size: int
    """Pixels along a side of its images."""
    image_token: int
    places: int
    """Image tokens that one image has in the prompt."""

    def ids(self) -> Tensor:
        """The prompt [1, tokens]: the start token, the image, then words."""
        words = torch.arange(WORDS) * 37 % 1000 + 5
        start, image = torch.tensor([1]), torch.full((self.places,), self.image_token)
        return torch.cat((start, image, words))[None]

    def pixels(self, images: int) -> Tensor:
        """Normalised pixels [images, 3, size, size]."""
        draw = torch.Generator().manual_seed(1)
        return torch.randn(images, 3, self.size, self.size, generator=draw)

    def save(self, folder: Path, dtype: torch.dtype) -> None:
        """Writes the checkpoint to `folder`/checkpoint and the spec to `folder`/<name>.yaml."""
        torch.manual_seed(0)
        model = self.model().eval()
        for name, parameter in model.named_parameters():
            if "alpha" in name:  # a gate that is shut would hide the image
                parameter.data.fill_(0.5)
        model.to(dtype).save_pretrained(folder / "checkpoint")
        (folder / f"{self.name}.yaml").write_text(yaml.safe_dump(self.document, sort_keys=False))


def _llava() -> Any:
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                image_size=224,
                patch_size=16,
            ),
            text_config=LlamaConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                num_key_value_heads=12,
                vocab_size=32000,
                max_position_embeddings=2048,
                rms_norm_eps=1e-5,
            ),
            image_token_index=31999,
            image_seq_length=196,
        )
    )


def _idefics() -> Any:
    return IdeficsForVisionText2Text(
        IdeficsConfig(
            vision_config={
                "embed_dim": 768,
                "image_size": 224,
                "patch_size": 16,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
            },
            perceiver_config={
                "use_resampler": True,
                "resampler_n_latents": 64,
                "resampler_depth": 3,
                "resampler_n_heads": 8,
                "resampler_head_dim": 96,
                "qk_layer_norms_perceiver": True,
            },
            vocab_size=32000,
            additional_vocab_size=2,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            cross_layer_interval=4,
            qk_layer_norms=True,
            use_resampler=True,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
    )


def _blip2() -> Any:
    return Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=Blip2VisionConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                image_size=224,
                patch_size=16,
            ),
            qformer_config=Blip2QFormerConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=6,
                num_attention_heads=12,
                encoder_hidden_size=768,
                vocab_size=20,
            ),
            text_config=OPTConfig(
                vocab_size=32000,
                hidden_size=768,
                word_embed_proj_dim=768,
                ffn_dim=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=2048,
            ),
            num_query_tokens=32,
            image_token_index=31999,
        )
    )


_VIT: dict[str, Any] = {
    "kind": "vit",
    "image_size": 224,
    "patch_size": 16,
    "width": 768,
    "layers": 12,
    "heads": 12,
    "hidden": 3072,
}
_BUDGET = {"images": 1, "text": 512}

SYSTEMS = (
    System(
        name="llava-1.5",
        model=_llava,
        size=224,
        image_token=31999,
        places=196,
        document={
            "name": "llava-1.5-221m",
            "encoder": {
                **_VIT,
                "activation": "quick_gelu",
                "norm_eps": 1e-5,
                "features": {"layer": -2, "drop_cls": True},
            },
            "adapter": {"kind": "mlp", "layers": 2, "activation": "gelu"},
            "fusion": {"kind": "placeholder", "token": 31999},
            "language": {
                "kind": "decoder",
                "width": 768,
                "layers": 12,
                "heads": 12,
                "hidden": 3072,
                "vocabulary": 32000,
                "context": 2048,
                "norm_eps": 1e-5,
            },
            "token_budget": _BUDGET,
        },
    ),
    System(
        name="idefics",
        model=_idefics,
        size=224,
        image_token=32001,
        places=1,
        document={
            "name": "idefics-270m",
            "encoder": {**_VIT, "activation": "gelu", "norm_eps": 1e-5, "features": {"layer": -1}},
            "adapter": {
                "kind": "perceiver_resampler",
                "queries": 64,
                "layers": 3,
                "width": 768,
                "heads": 8,
                "head_dim": 96,
                "activation": "relu",
                "qk_norm": "layer",
                "final_norm": True,
            },
            "fusion": {
                "kind": "gated_cross_attention",
                "every": 4,
                "hidden": 2048,
                "norm": "rms",
                "norm_eps": 1e-6,
                "activation": "silu",
                "gated": True,
                "qk_norm": "rms",
                "visual_projection": False,
            },
            "language": {
                "kind": "decoder",
                "width": 768,
                "layers": 12,
                "heads": 12,
                "hidden": 2048,
                "vocabulary": 32000,
                "added_vocabulary": 2,
                "context": 2048,
                "norm_eps": 1e-6,
            },
            "token_budget": _BUDGET,
        },
    ),
    System(
        name="blip-2",
        model=_blip2,
        size=224,
        image_token=31999,
        places=32,
        document={
            "name": "blip-2-250m",
            "encoder": {
                **_VIT,
                "activation": "gelu",
                "norm_eps": 1e-6,
                "patch_bias": True,
                "pre_norm": False,
                "features": {"layer": -1, "norm": True},
            },
            "adapter": {
                "kind": "qformer",
                "queries": 32,
                "layers": 6,
                "cross_attention_every": 2,
                "width": 768,
                "heads": 12,
                "hidden": 3072,
            },
            "fusion": {"kind": "query_prefix", "token": 31999},
            "language": {
                "kind": "decoder",
                "width": 768,
                "layers": 12,
                "heads": 12,
                "hidden": 3072,
                "vocabulary": 32000,
                "context": 2048,
                "norm": "layer",
                "norm_eps": 1e-5,
                "activation": "relu",
                "gated": False,
                "qkv_bias": True,
                "output_bias": True,
                "mlp_bias": True,
                "positions": {"kind": "learned", "offset": 2},
                "tied_head": True,
            },
            "token_budget": _BUDGET,
        },
    ),
)
