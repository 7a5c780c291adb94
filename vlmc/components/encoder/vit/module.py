"""A vision transformer."""

import torch
from torch import Tensor, nn

from vlmc.components.shared.block import TransformerBlock
from vlmc.components.shared.norm import Norm


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2021).

    [images, 3, size, size], or [images, frames, 3, size, size] where it sees videos, each frame by
    itself -> [images, frames * tokens, channels].
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        activation: str,
        norm_eps: float,
        patch_bias: bool,
        class_token: bool,
        pre_norm: bool,
        post_norm: bool,
        feature_layers: tuple[int, ...],
        drop_class_token: bool,
        norm_features: bool,
        frames: int,
    ) -> None:
        super().__init__()
        self.feature_layers = feature_layers
        self.deepest = max(feature_layers)
        self.several = len(feature_layers) > 1
        self.drop_class_token = drop_class_token
        self.norm_features = norm_features
        self.frames = frames
        tokens = (image_size // patch_size) ** 2 + (1 if class_token else 0)
        self.patch_embedding = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=patch_bias)
        self.class_embedding = nn.Parameter(torch.zeros(width)) if class_token else None
        self.position_embedding = nn.Parameter(torch.zeros(tokens, width))
        self.pre_norm = Norm(width=width, kind="layer", eps=norm_eps) if pre_norm else None
        self.layers = nn.ModuleList(
            TransformerBlock(
                width=width,
                heads=heads,
                kv_heads=heads,
                head_dim=width // heads,
                hidden=hidden,
                norm="layer",
                norm_eps=norm_eps,
                pre_norm=True,
                activation=activation,
                gated=False,
                qkv_bias=True,
                output_bias=True,
                mlp_bias=True,
            )
            for _ in range(layers)
        )
        self.post_norm = Norm(width=width, kind="layer", eps=norm_eps) if post_norm else None

    def see(self, images: Tensor) -> Tensor:
        """Features of still images [images, 3, size, size]."""
        x = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        x = x.flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + self.position_embedding
        if self.pre_norm is not None:
            x = self.pre_norm(x)
        if self.several:
            x = self.concatenated(x)
        else:
            for layer in self.layers[: self.deepest]:
                x = layer(x)
            if self.norm_features and self.post_norm is not None:
                x = self.post_norm(x)
        return x[:, 1:] if self.drop_class_token else x

    def concatenated(self, x: Tensor) -> Tensor:
        """The chosen hidden states side by side: [images, tokens, width * chosen layers]."""
        states = [x]
        for layer in self.layers[: self.deepest]:
            states.append(layer(states[-1]))
        chosen = [states[index] for index in self.feature_layers]
        if self.norm_features and self.post_norm is not None:
            chosen = [self.post_norm(state) for state in chosen]
        return torch.cat(chosen, dim=-1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if self.frames == 1:
            return self.see(pixel_values)
        # A still image is a video of one frame.
        videos = pixel_values[:, None] if pixel_values.ndim == 4 else pixel_values
        features = self.see(videos.flatten(0, 1))
        return features.reshape(videos.shape[0], -1, features.shape[-1])
