"""Each mistake that is easily made with Idefics, made on purpose: the tolerance catches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from idefics_pair import DOCUMENT, WORDS, Pair, interleaved
from oracle import (
    assert_caught,
    changed,
    distance,
    loaded,
    logits_of,
    mutant,
    reference_with_noise,
)
from torch import Tensor

from vlmc.components.adapter.perceiver_resampler.module import ResamplerBlock
from vlmc.components.fusion.gated_cross_attention.module import GatedBlock
from vlmc.components.language.decoder.module import Decoder
from vlmc.components.shared.attention import Attention
from vlmc.components.shared.rotary import Rotary, rotate
from vlmc.diagnostics import UsageError


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("idefics"), DOCUMENT)


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
