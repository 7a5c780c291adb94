"""NFNet against its definition, written out for one output channel at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmc.components.encoder.frames import Frames
from vlmc.components.encoder.nfnet.module import NFNet as NFNetModule
from vlmc.components.encoder.nfnet.spec import NFNet

SMALL = NFNet(
    image_size=64,
    depths=(1, 2, 3, 1),
    widths=(16, 24, 40, 40),
    group_size=4,
    frames=Frames(train=2, serve=3),
)


def built(spec: NFNet) -> Any:
    """The module with every parameter drawn at random."""
    model = NFNetModule(**spec.arguments())  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def same_conv(x: Tensor, weights: dict[str, Tensor], name: str, stride: int = 1) -> Tensor:
    """Scaled weight standardisation channel by channel, then a SAME convolution of XLA."""
    raw, gain, bias = (weights[f"{name}.{leaf}"] for leaf in ("weight", "gain", "bias"))
    kernels = []
    for kernel, factor in zip(raw, gain, strict=True):
        fan_in = kernel.numel()
        variance = sum((w - kernel.mean()) ** 2 for w in kernel.flatten()) / fan_in
        kernels.append((kernel - kernel.mean()) / math.sqrt(max(fan_in * variance, 1e-4)) * factor)
    size, side = raw.shape[-1], x.shape[-1]
    total = max(0, (math.ceil(side / stride) - 1) * stride + size - side)
    before, after = total // 2, total - total // 2
    padded = F.pad(x, (before, after, before, after))
    groups = x.shape[1] // raw.shape[1]
    return F.conv2d(padded, torch.stack(kernels), bias, stride=stride, groups=groups)


def act(x: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + torch.tanh(inner)) * 1.7015043497085571


def reference(spec: NFNet, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    for index, stride in enumerate((2, 1, 1, 2)):
        x = same_conv(x if index == 0 else act(x), weights, f"stem.{index}", stride)
    number, deviation = 0, 1.0
    for stage, depth in enumerate(spec.depths):
        for index in range(depth):
            at = f"blocks.{number}"
            stride = 2 if stage > 0 and index == 0 else 1
            out = act(x) / deviation
            shortcut = x
            if stride == 2:
                pooled = out.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
                shortcut = same_conv(pooled, weights, f"{at}.shortcut")
            elif x.shape[1] != spec.widths[stage]:
                shortcut = same_conv(out, weights, f"{at}.shortcut")
            out = same_conv(out, weights, f"{at}.enter")
            out = same_conv(act(out), weights, f"{at}.first", stride)
            out = same_conv(act(out), weights, f"{at}.second")
            out = same_conv(act(out), weights, f"{at}.leave")
            se = {leaf: weights[f"{at}.squeeze_excite.{leaf}"] for leaf in SE_LEAVES}
            hidden = torch.relu(out.mean(dim=(2, 3)) @ se["down.weight"].T + se["down.bias"])
            gate = torch.sigmoid(hidden @ se["up.weight"].T + se["up.bias"])
            out = 2 * gate[:, :, None, None] * out * weights[f"{at}.skip_gain"]
            x = out * spec.alpha + shortcut
            deviation = 1.0 if index == 0 else deviation
            deviation = math.sqrt(deviation**2 + spec.alpha**2)
            number += 1
    return act(same_conv(x, weights, "final")).flatten(2).transpose(1, 2)


SE_LEAVES = ("down.weight", "down.bias", "up.weight", "up.bias")


def test_it_computes_its_definition() -> None:
    model = built(SMALL)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    with torch.no_grad():
        expected = reference(SMALL, weights, images)
        got = model(images)
    assert got.shape == (2, 4, 80)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_new_block_is_its_shortcut() -> None:
    """`skip_gain` starts at zero."""
    fresh = NFNetModule(**SMALL.arguments())  # pyright: ignore[reportArgumentType]
    gains = [
        value.detach() for name, value in fresh.named_parameters() if name.endswith("skip_gain")
    ]
    assert len(gains) == sum(SMALL.depths)
    assert all(float(gain) == 0.0 for gain in gains)


def test_frames_of_a_video_are_seen_one_by_one() -> None:
    model = built(SMALL)
    video = torch.randn(2, 3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        together = model(video)
        apart = torch.cat([model(video[:, frame]) for frame in range(3)], dim=1)
    assert together.shape == (2, 12, 80)
    torch.testing.assert_close(together, apart)


def test_what_it_gives() -> None:
    visual = SMALL.visual()
    assert (visual.tokens, visual.width, visual.frames) == (4, 80, 3)
    assert (visual.total, visual.trained_frames) == (12, 2)
    assert SMALL.input_type().dims == ("images", 3, 3, 64, 64)


@pytest.mark.parametrize(
    ("changes", "code", "path"),
    [
        ({"image_size": 330}, "VLMC105", ("image_size",)),
        ({"group_size": 64}, "VLMC117", ("widths", 0)),
        ({"widths": (1, 24, 40, 40), "group_size": 1, "bottleneck_ratio": 1.0}, "VLMC117", None),
    ],
)
def test_faults(changes: dict[str, Any], code: str, path: tuple[str, ...] | None) -> None:
    found = list(SMALL.model_copy(update=changes).problems())
    assert found[0].code == code
    assert path is None or found[0].path == path
    assert not list(SMALL.problems())
