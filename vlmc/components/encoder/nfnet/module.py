"""A normaliser-free ResNet."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmc.components.shared.activation import Activation


class StandardisedConv(nn.Module):
    """Convolution with scaled weight standardisation: [images, inputs, rows, columns] ->
    [images, outputs, rows / stride, columns / stride].

    Each output's kernel is brought to mean 0 and variance 1 / fan-in, then scaled by a learned
    gain. Brock et al., 2021, "High-performance large-scale image recognition without
    normalization", section 3. Padding is what JAX calls SAME: a 3 x 3 kernel of stride 2 pads an
    even side at its end only.
    """

    def __init__(self, *, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // groups, kernel, kernel))
        self.gain = nn.Parameter(torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        fan_in = self.weight[0].numel()
        scale = torch.rsqrt((variance * fan_in).clamp(min=1e-4)) * self.gain[:, None, None, None]
        weight = (self.weight - mean) * scale
        if self.stride == 2:
            x = F.pad(x, (0, 1, 0, 1))
            return F.conv2d(x, weight, self.bias, stride=2, groups=self.groups)
        return F.conv2d(x, weight, self.bias, padding=self.kernel // 2, groups=self.groups)


class SqueezeExcite(nn.Module):
    """A gate for each channel from the mean over the image: [images, width, rows, columns]."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        channel = torch.sigmoid(self.up(F.relu(self.down(x.mean(dim=(2, 3))))))
        return x * channel[:, :, None, None]


class NFBlock(nn.Module):
    """A bottleneck block of NFNet: [images, inputs, rows, columns] -> [images, width, ...].

    `beta` brings the input to unit variance; the branch is scaled by `alpha` and by a learned
    `skip_gain` that starts at 0. Brock et al., 2021, section 4 and appendix C.
    """

    def __init__(
        self,
        *,
        inputs: int,
        width: int,
        bottleneck: int,
        groups: int,
        se_hidden: int,
        stride: int,
        activation: str,
        gamma: float,
        alpha: float,
        beta: float,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.gamma = gamma
        self.alpha = alpha
        self.beta = beta
        self.activation = Activation(kind=activation)
        self.shortcut = None
        if stride == 2 or inputs != width:
            self.shortcut = StandardisedConv(
                inputs=inputs, outputs=width, kernel=1, stride=1, groups=1
            )
        self.enter = StandardisedConv(
            inputs=inputs, outputs=bottleneck, kernel=1, stride=1, groups=1
        )
        self.first = StandardisedConv(
            inputs=bottleneck, outputs=bottleneck, kernel=3, stride=stride, groups=groups
        )
        self.second = StandardisedConv(
            inputs=bottleneck, outputs=bottleneck, kernel=3, stride=1, groups=groups
        )
        self.leave = StandardisedConv(
            inputs=bottleneck, outputs=width, kernel=1, stride=1, groups=1
        )
        self.squeeze_excite = SqueezeExcite(width=width, hidden=se_hidden)
        self.skip_gain = nn.Parameter(torch.zeros(()))

    def activate(self, x: Tensor) -> Tensor:
        """The activation, scaled to keep unit variance."""
        return self.activation(x) * self.gamma

    def forward(self, x: Tensor) -> Tensor:
        active = self.activate(x) * self.beta
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(active, 2) if self.stride == 2 else active)
        inner = self.first(self.activate(self.enter(active)))
        inner = self.leave(self.activate(self.second(self.activate(inner))))
        # A sigmoid halves its input on average: 2 makes up for it.
        inner = self.squeeze_excite(inner) * 2
        return x + inner * self.skip_gain * self.alpha


class NFNet(nn.Module):
    """NFNet-F: [images, 3, size, size] -> [images, (size / 32)^2, features].

    With `frames` above 1 it takes [images, frames, 3, size, size] too, each frame by itself, and
    gives [images, frames * (size / 32)^2, features]. Brock et al., 2021, appendix C; its reference
    code is nfnets/nfnet.py in github google-deepmind/deepmind-research.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        bottlenecks: tuple[int, ...],
        group_size: int,
        se_hidden: tuple[int, ...],
        features: int,
        activation: str,
        gamma: float,
        alpha: float,
        frames: int,
    ) -> None:
        super().__init__()
        self.gamma = gamma
        self.frames = frames
        self.activation = Activation(kind=activation)
        self.stem = nn.ModuleList(
            StandardisedConv(inputs=inputs, outputs=outputs, kernel=3, stride=stride, groups=1)
            for inputs, outputs, stride in (
                (3, 16, 2),
                (16, 32, 1),
                (32, 64, 1),
                (64, widths[0] // 2, 2),
            )
        )
        self.blocks = nn.ModuleList()
        inputs = widths[0] // 2
        # The variance that each block adds is undone by the next one's beta; a stage starts anew.
        variance = 1.0
        stages = zip(depths, widths, bottlenecks, se_hidden, strict=True)
        for depth, width, bottleneck, squeezed in stages:
            for index in range(depth):
                self.blocks.append(
                    NFBlock(
                        inputs=inputs,
                        width=width,
                        bottleneck=bottleneck,
                        groups=bottleneck // group_size,
                        se_hidden=squeezed,
                        stride=2 if index == 0 and len(self.blocks) > 0 else 1,
                        activation=activation,
                        gamma=gamma,
                        alpha=alpha,
                        beta=1.0 / math.sqrt(variance),
                    )
                )
                inputs = width
                variance = (1.0 if index == 0 else variance) + alpha**2
        self.final = StandardisedConv(inputs=inputs, outputs=features, kernel=1, stride=1, groups=1)

    def see(self, images: Tensor) -> Tensor:
        """Features [images, (size / 32)^2, features] of still images [images, 3, size, size]."""
        x = self.stem[0](images.to(self.final.weight.dtype))
        for layer in self.stem[1:]:
            x = layer(self.activation(x) * self.gamma)
        for block in self.blocks:
            x = block(x)
        x = self.activation(self.final(x)) * self.gamma
        return x.flatten(2).transpose(1, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.frames == 1:
            return self.see(pixel_values)
        # A still image is a video of one frame.
        videos = pixel_values[:, None] if pixel_values.ndim == 4 else pixel_values
        features = self.see(videos.flatten(0, 1))
        return features.reshape(videos.shape[0], -1, features.shape[-1])
