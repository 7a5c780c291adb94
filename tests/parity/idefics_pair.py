"""A small Idefics, ours and transformers', and the inputs that tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from oracle import loaded, randomise, saved
from torch import Tensor
from transformers import IdeficsConfig, IdeficsForVisionText2Text

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
