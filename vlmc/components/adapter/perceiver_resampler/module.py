"""The perceiver resampler."""

import torch
from torch import Tensor, nn

from vlmc.components.shared.attention import Attention
from vlmc.components.shared.mlp import MLP
from vlmc.components.shared.norm import Norm


class ResamplerBlock(nn.Module):
    """Latents look at the features and at themselves, then pass an MLP: [images, queries, width].

    Keys and values are made of the features [images, tokens, width] and the latents, one after
    the other, each through a norm of its own.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        head_dim: int,
        activation: str,
        qk_norm: str | None,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.source_norm = Norm(width=width, kind="layer", eps=norm_eps)
        self.latent_norm = Norm(width=width, kind="layer", eps=norm_eps)
        self.attention = Attention(
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            source_width=width,
            qkv_bias=False,
            output_bias=False,
            qk_norm=qk_norm,
            qk_norm_eps=norm_eps,
        )
        self.mlp_norm = Norm(width=width, kind="layer", eps=norm_eps)
        self.mlp = MLP(
            width=width, hidden=4 * width, activation=activation, gated=False, bias=False
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        inner = self.latent_norm(latents)
        source = torch.cat((self.source_norm(features), inner), dim=1)
        latents = latents + self.attention(inner, self.attention.key_value(source))
        return latents + self.mlp(self.mlp_norm(latents))


class PerceiverResampler(nn.Module):
    """Any number of features become `queries` visual tokens: [images, frames * tokens,
    source_width] -> [images, queries, width].

    Alayrac et al., 2022 (Flamingo), section 2.1 and appendix A.1.1. A video's features get a
    temporal embedding by frame; more frames than `frames` interpolate it linearly.
    """

    def __init__(
        self,
        *,
        source_width: int,
        source_tokens: int,
        width: int,
        queries: int,
        layers: int,
        heads: int,
        head_dim: int,
        activation: str,
        qk_norm: str | None,
        norm_eps: float,
        final_norm: bool,
        frames: int,
    ) -> None:
        super().__init__()
        self.source_tokens = source_tokens
        self.frames = frames
        self.projection = None
        if source_width != width:
            self.projection = nn.Linear(source_width, width, bias=False)
        self.time_embedding = nn.Parameter(torch.zeros(frames, width)) if frames > 1 else None
        self.latents = nn.Parameter(torch.zeros(queries, width))
        self.layers = nn.ModuleList(
            ResamplerBlock(
                width=width,
                heads=heads,
                head_dim=head_dim,
                activation=activation,
                qk_norm=qk_norm,
                norm_eps=norm_eps,
            )
            for _ in range(layers)
        )
        self.norm = Norm(width=width, kind="layer", eps=norm_eps) if final_norm else None

    def times(self, embedding: Tensor, shown: int) -> Tensor:
        """Embeddings [shown, width] of the frames of a video of `shown` frames.

        Beyond the trained frames, `embedding` is stretched: the last frame shown stands at its
        last row.
        """
        frame = torch.arange(shown, device=embedding.device).float()
        # Of tensors alone, so that the number of frames may vary in a captured graph.
        step = ((self.frames - 1) / frame[-1].clamp(min=1.0)).clamp(max=1.0)
        place = frame * step
        below = place.floor().long().clamp(max=self.frames - 1)
        above = (below + 1).clamp(max=self.frames - 1)
        share = (place - below)[:, None].to(embedding.dtype)
        return torch.lerp(embedding[below], embedding[above], share)

    def forward(self, features: Tensor) -> Tensor:
        if self.projection is not None:
            features = self.projection(features)
        if self.time_embedding is not None:
            shown = features.shape[1] // self.source_tokens
            times = self.times(self.time_embedding, shown)
            features = features + times.repeat_interleave(self.source_tokens, dim=0)
        latents = self.latents.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        return latents if self.norm is None else self.norm(latents)
