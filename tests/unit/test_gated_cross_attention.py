"""Gated cross-attention as in the Flamingo paper: its figure 4 step by step; who sees what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vlmc.components.fusion.gated_cross_attention.module import GatedBlock, GatedCrossAttention
from vlmc.components.head.lm.module import LMHead
from vlmc.components.head.lm.spec import LMHead as LMHeadSpec
from vlmc.components.language.decoder.module import Decoder
from vlmc.components.language.decoder.spec import Decoder as DecoderSpec
from vlmc.components.language.decoder.spec import Positions

WIDTH, HEADS, HEAD_DIM, IMAGE = 16, 2, 8, 19

LANGUAGE = DecoderSpec(
    width=WIDTH,
    layers=5,
    heads=HEADS,
    hidden=32,
    vocabulary=20,
    activation="gelu",
    gated=False,
    positions=Positions(kind="transformer_xl"),
    tied_head=True,
)


class Grid(torch.nn.Module):
    """Stands for an encoder and an adapter: an image of 4 numbers is two tokens of six channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(12, 4))

    def forward(self, images: Tensor) -> Tensor:
        return (images @ self.weight.T).unflatten(-1, (2, 6))


def drawn(model: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def built(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "width": WIDTH,
        "visual_width": 6,
        "visual_projection": True,
        "every": 2,
        "blocks": 3,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "hidden": 4 * WIDTH,
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": "relu_squared",
        "gated": False,
        "qk_norm": None,
        "gate_width": 1,
        "all_previous": False,
        "image_token": IMAGE,
        **changes,
    }
    language = Decoder(**LANGUAGE.arguments())  # pyright: ignore[reportArgumentType]
    head = LMHead(**LMHeadSpec().arguments(LANGUAGE))  # pyright: ignore[reportArgumentType]
    parts = {"encoder": Grid(), "adapter": torch.nn.Identity(), "language": language, "head": head}
    return drawn(GatedCrossAttention(**parts, **arguments))


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / deviation * norm.weight + norm.bias


@torch.no_grad()
def test_a_block_computes_figure_4() -> None:
    block = built().gated_blocks[0]
    assert isinstance(block, GatedBlock)
    y, x = torch.randn(5, WIDTH), torch.randn(4, WIDTH)
    seen = torch.rand(5, 4) > 0.5
    seen[:, 0] = True
    seen[2] = False
    got = block(y[None], block.attention.key_value(x[None]), seen[None, None])[0]
    inner, heads = layer_norm(y, block.attention_norm), []
    for head in range(HEADS):
        rows = slice(HEAD_DIM * head, HEAD_DIM * head + HEAD_DIM)
        q = inner @ block.attention.query.weight[rows].T
        k, v = x @ block.attention.key.weight[rows].T, x @ block.attention.value.weight[rows].T
        scores = torch.where(seen, q @ k.T / HEAD_DIM**0.5, -torch.inf)
        heads.append(torch.softmax(scores, dim=-1).nan_to_num() @ v)
    attended = torch.cat(heads, dim=-1) @ block.attention.output.weight.T
    y = y + torch.tanh(block.attention_gate) * attended
    hidden = torch.relu(layer_norm(y, block.mlp_norm) @ block.mlp.up.weight.T) ** 2
    y = y + torch.tanh(block.dense_gate) * (hidden @ block.mlp.down.weight.T)
    torch.testing.assert_close(got, y, rtol=1e-4, atol=1e-5)


def depends(model: Any, ids: Tensor, images: Tensor) -> Tensor:
    """Which token's logits change with which image: [text, images]."""
    before = model(ids, pixel_values=images).logits[0]
    columns = []
    for number in range(images.shape[1]):
        other = images.clone()
        other[0, number] += 1.0
        after = model(ids, pixel_values=other).logits[0]
        columns.append((after - before).abs().amax(dim=-1) > 1e-6)
    return torch.stack(columns, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("attend", ["last_image", "all_previous"])
def test_who_sees_which_image(attend: str) -> None:
    """With one block before a single layer of attention to oneself, sight is all there is."""
    model = built(all_previous=attend == "all_previous")
    for layer in model.language.layers:
        layer.attention.value.weight.zero_()
    ids = torch.tensor([[1, 2, IMAGE, 3, 4, IMAGE, IMAGE, 5]])
    expected = torch.zeros(8, 3, dtype=torch.bool)
    expected[2:5, 0] = True
    expected[5, 1] = True
    expected[6:, 2] = True
    if attend == "all_previous":
        expected = expected.cummax(dim=0).values
    assert torch.equal(depends(model, ids, torch.randn(1, 3, 4)), expected)


@torch.no_grad()
def test_shut_gates_leave_the_language_model_as_it_is() -> None:
    model = built()
    for block in model.gated_blocks:
        block.attention_gate.zero_()
        block.dense_gate.zero_()
    ids = torch.tensor([[1, IMAGE, 3, 4]])
    hidden = model.language(model.language.embed(ids))
    expected = model.head(hidden, model.language.embedding)
    assert torch.equal(model(ids, pixel_values=torch.randn(1, 1, 4)).logits, expected)
    assert torch.equal(model(ids[:, 2:]).logits, model(ids[:, 2:], cache=model.new_cache()).logits)


@torch.no_grad()
def test_images_are_read_once_and_kept() -> None:
    """A step gives what the whole sequence gives, and does not ask the encoder again."""
    model = built()
    ids = torch.tensor([[1, IMAGE, 3, 4, IMAGE, 5, 6, 7]])
    images = torch.randn(1, 2, 4)
    expected = model(ids, pixel_values=images).logits
    cache = model.new_cache()
    steps = [model(ids[:, :6], pixel_values=images, cache=cache).logits]
    memory = cache.memory
    model.encoder = None
    steps += [model(ids[:, end : end + 1], cache=cache).logits for end in (6, 7)]
    assert cache.memory is memory
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_batch_mates_do_not_matter() -> None:
    """A row with fewer images is what it is alone, whatever fills the places of the others."""
    model = built()
    ids = torch.tensor([[1, IMAGE, 3, IMAGE, 5], [2, IMAGE, 6, 7, 8]])
    images = torch.randn(2, 2, 4)
    both = model(ids, pixel_values=images).logits
    alone = model(ids[1:], pixel_values=images[1:, :1]).logits
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_visual_projection_is_shared() -> None:
    model = built()
    names = [name for name, _ in model.named_parameters() if name.startswith("visual_projection")]
    assert names == ["visual_projection.weight"]
    assert model.encode_images(torch.randn(2, 3, 4)).shape == (2, 3, 2, WIDTH)
    bare = built(visual_projection=False)
    assert bare.encode_images(torch.randn(2, 3, 4)).shape == (2, 3, 2, 6)
    assert bare.gated_blocks[0].attention.key.weight.shape == (WIDTH, 6)
