"""The perceiver resampler of the Flamingo paper: its figure 5 step by step, and time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmc.components.adapter.perceiver_resampler.module import PerceiverResampler

ARGUMENTS: dict[str, Any] = {
    "source_width": 24,
    "source_tokens": 6,
    "width": 16,
    "queries": 3,
    "layers": 2,
    "heads": 2,
    "head_dim": 10,
    "activation": "relu_squared",
    "qk_norm": None,
    "norm_eps": 1e-5,
    "final_norm": False,
    "frames": 8,
}


def built(**changes: Any) -> Any:
    model = PerceiverResampler(**{**ARGUMENTS, **changes})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    )


def attend(query: Tensor, source: Tensor, attention: Any) -> Tensor:
    """One image: query [queries, width], source [keys, width]; head by head."""
    result = []
    for head in range(2):
        rows = slice(10 * head, 10 * head + 10)
        q, k, v = (
            x @ projection.weight[rows].T
            for x, projection in (
                (query, attention.query),
                (source, attention.key),
                (source, attention.value),
            )
        )
        result.append(torch.softmax(q @ k.T / 10**0.5, dim=-1) @ v)
    return torch.cat(result, dim=-1) @ attention.output.weight.T


def test_it_computes_figure_5() -> None:
    model = built()
    features = torch.randn(1, 8 * 6, 24)
    with torch.no_grad():
        got = model(features)[0]
        x_f = features[0] @ model.projection.weight.T
        x_f = (x_f.view(8, 6, 16) + model.time_embedding[:, None]).flatten(0, 1)
        x = model.latents
        for layer in model.layers:
            normed = layer_norm(x, layer.latent_norm)
            source = torch.cat((layer_norm(x_f, layer.source_norm), normed))
            x = x + attend(normed, source, layer.attention)
            hidden = torch.relu(layer_norm(x, layer.mlp_norm) @ layer.mlp.up.weight.T) ** 2
            x = x + hidden @ layer.mlp.down.weight.T
    assert got.shape == (3, 16)
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-5)


def test_time_embeddings_stretch_beyond_the_trained_frames() -> None:
    """Frame 15 of 30 over 8 embeddings stands at 15 x 7/29 = 3.62."""
    model = built()
    ramp = torch.arange(8.0)[:, None]
    assert torch.equal(model.times(ramp, 8), ramp)
    assert torch.equal(model.times(ramp, 3), ramp[:3])
    assert torch.equal(model.times(ramp, 1), ramp[:1])
    stretched = model.times(ramp, 30)
    assert abs(float(stretched[15]) - 3.6207) < 1e-3
    torch.testing.assert_close(stretched[:, 0], torch.linspace(0, 7, 30))


def test_a_still_image_is_the_first_frame() -> None:
    model = built()
    features = torch.randn(1, 6, 24)
    with torch.no_grad():
        before = model(features)
        model.time_embedding[1:] = 9.0
        assert torch.equal(model(features), before)
        model.time_embedding[0] = torch.linspace(-2, 2, 16)
        assert not torch.allclose(model(features), before)


def test_the_order_of_frames_matters_only_by_time() -> None:
    features = torch.randn(1, 4 * 6, 24)
    swapped = features.view(1, 4, 6, 24).flip(1).reshape(1, 24, 24)
    with torch.no_grad():
        timed, still = built(), built(frames=1)
        assert not torch.allclose(timed(features), timed(swapped), atol=1e-3)
        torch.testing.assert_close(still(features), still(swapped))


def test_any_number_of_frames_gives_the_same_number_of_tokens() -> None:
    model = built()
    for frames in (1, 8, 30):
        assert model(torch.randn(2, frames * 6, 24)).shape == (2, 3, 16)
