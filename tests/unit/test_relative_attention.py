"""Relative attention against the scores of Transformer-XL (Dai et al., 2019, section 3.3)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vlmc.components.language.decoder.module import Decoder
from vlmc.components.language.decoder.spec import Decoder as DecoderSpec
from vlmc.components.language.decoder.spec import Positions
from vlmc.components.shared.cache import Cache, LayerCache
from vlmc.components.shared.masks import places
from vlmc.components.shared.relative import RelativeAttention

WIDTH, HEADS, HEAD_DIM = 12, 2, 5


def built() -> Any:
    attention = RelativeAttention(
        width=WIDTH, heads=HEADS, head_dim=HEAD_DIM, qkv_bias=True, output_bias=True
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return attention.double().eval()


def encoding(distance: int) -> Tensor:
    """Sines, then cosines, of one distance."""
    angles = [distance / 10000 ** (channel / WIDTH) for channel in range(0, WIDTH, 2)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


def written_out(attention: Any, x: Tensor, visible: Tensor) -> Tensor:
    """One sequence [tokens, width]; `visible` [tokens] is False at padding."""
    tokens = x.shape[0]
    heads = []
    for head in range(HEADS):
        rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        q = x @ attention.query.weight[rows].T + attention.query.bias[rows]
        k = x @ attention.key.weight[rows].T + attention.key.bias[rows]
        v = x @ attention.value.weight[rows].T + attention.value.bias[rows]
        u, w = attention.content_bias[head, 0], attention.distance_bias[head, 0]
        out = torch.zeros(tokens, HEAD_DIM, dtype=torch.float64)
        for i in range(tokens):
            keys = [j for j in range(i + 1) if visible[j] or j == i]
            scores = []
            for j in keys:
                relative = attention.distance.weight[rows] @ encoding(i - j)
                scores.append(((q[i] + u) @ k[j] + (q[i] + w) @ relative) / math.sqrt(HEAD_DIM))
            out[i] = torch.softmax(torch.stack(scores), dim=0) @ v[keys]
        heads.append(out)
    return torch.cat(heads, dim=-1) @ attention.output.weight.T + attention.output.bias


@torch.no_grad()
def test_scores() -> None:
    attention = built()
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64)
    expected = torch.stack([written_out(attention, row, torch.ones(7).bool()) for row in x])
    torch.testing.assert_close(
        attention(x, places(None, x, 0), None), expected, rtol=1e-6, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("chunks", [(1,) * 7, (4, 1, 2), (6, 1)])
def test_tokens_that_come_later_find_their_distances(chunks: tuple[int, ...]) -> None:
    attention = built()
    x = torch.randn(1, 7, WIDTH, dtype=torch.float64)
    cache = LayerCache()
    parts: list[Tensor] = []
    for part in x.split(chunks, dim=1):
        past = sum(one.shape[1] for one in parts)
        parts.append(attention(part, places(None, part, past), cache))
    torch.testing.assert_close(torch.cat(parts, dim=1), attention(x, places(None, x, 0), None))


def decoder() -> Any:
    spec = DecoderSpec(
        width=16,
        layers=3,
        heads=2,
        hidden=32,
        vocabulary=20,
        activation="gelu",
        gated=False,
        mlp_bias=True,
        positions=Positions(kind="transformer_xl"),
    )
    model = Decoder(**spec.arguments())  # pyright: ignore[reportArgumentType]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return model.eval()


@torch.no_grad()
def test_a_row_is_what_it_is_alone_whatever_stands_before_it() -> None:
    """Padding on the left moves no distance; the cache neither."""
    model = decoder()
    ids = torch.randint(0, 20, (1, 6))
    alone = model(model.embed(ids))
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    torch.testing.assert_close(model(model.embed(padded), mask)[:, 3:], alone)
    cache = Cache(3)
    steps = [model(model.embed(padded[:, :5]), mask[:, :5], cache)]
    for end in range(6, 10):
        steps.append(model(model.embed(padded[:, end - 1 : end]), mask[:, :end], cache))
    torch.testing.assert_close(torch.cat(steps, dim=1)[:, 3:], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_padding_between_a_prompt_and_its_answer_moves_no_distance() -> None:
    """A shorter row of a batch is padded on the right; its answer goes on behind the padding."""
    model = decoder()
    ids = torch.randint(0, 20, (1, 6))
    alone = model(model.embed(ids))
    gap = torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat((ids[:, :4], gap, ids[:, 4:]), dim=1)
    mask = torch.tensor([[1] * 4 + [0] * 3 + [1] * 2])
    found = model(model.embed(padded), mask)[:, [0, 1, 2, 3, 7, 8]]
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
