"""flamingo-9b. Flamingo-9B (Alayrac et al., 2022), arXiv:2204.14198.

9,357,658,228 parameters, of which 1,810,663,440 train.

encoder: nfnet, 435,286,116 parameters, frozen
    takes pixel_values float[images, 30, 3, 320, 320]
    gives features float[images, 3000, 3072]
adapter: perceiver_resampler, 193,628,160 parameters
    takes features float[images, 3000, 3072]
    gives visual float[images, 64, 1536]
fusion: gated_cross_attention, 1,617,035,280 parameters
    takes input_ids int[batch, text]; visual float[images, 64, 1536]
    gives sequence float[batch, sequence, 4096]
language: decoder, 7,111,708,672 parameters, frozen
    takes sequence float[batch, sequence, 4096]
    gives hidden float[batch, sequence, 4096]
head: lm, no parameters
    takes hidden float[batch, sequence, 4096]
    gives logits float[batch, sequence, 32000]

Needs torch only.

    with torch.device("meta"):
        model = build()
    load_weights(model, "weights")
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EncoderActivation(nn.Module):
    """A pointwise nonlinearity, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


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
        beta: float,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.beta = beta
        self.activation = EncoderActivation()
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
        return self.activation(x) * 1.7015043497085571

    def forward(self, x: Tensor) -> Tensor:
        active = self.activate(x) * self.beta
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(active, 2) if self.stride == 2 else active)
        inner = self.first(self.activate(self.enter(active)))
        inner = self.leave(self.activate(self.second(self.activate(inner))))
        # A sigmoid halves its input on average: 2 makes up for it.
        inner = self.squeeze_excite(inner) * 2
        return x + inner * self.skip_gain * 0.2


class NFNet(nn.Module):
    """NFNet-F: [images, 3, size, size] -> [images, (size / 32)^2, features].

    With `frames` above 1 it takes [images, frames, 3, size, size] too, each frame by itself, and
    gives [images, frames * (size / 32)^2, features]. Brock et al., 2021, appendix C; its reference
    code is nfnets/nfnet.py in github google-deepmind/deepmind-research.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activation = EncoderActivation()
        self.stem = nn.ModuleList(
            StandardisedConv(inputs=inputs, outputs=outputs, kernel=3, stride=stride, groups=1)
            for inputs, outputs, stride in ((3, 16, 2), (16, 32, 1), (32, 64, 1), (64, 128, 2))
        )
        self.blocks = nn.ModuleList()
        inputs = 128
        # The variance that each block adds is undone by the next one's beta; a stage starts anew.
        variance = 1.0
        stages = zip(
            (7, 14, 42, 21),
            (256, 512, 1536, 1536),
            (128, 256, 768, 768),
            (128, 256, 768, 768),
            strict=True,
        )
        for depth, width, bottleneck, squeezed in stages:
            for index in range(depth):
                self.blocks.append(
                    NFBlock(
                        inputs=inputs,
                        width=width,
                        bottleneck=bottleneck,
                        groups=bottleneck // 128,
                        se_hidden=squeezed,
                        stride=2 if index == 0 and len(self.blocks) > 0 else 1,
                        beta=1.0 / math.sqrt(variance),
                    )
                )
                inputs = width
                variance = (1.0 if index == 0 else variance) + 0.2**2
        self.final = StandardisedConv(inputs=inputs, outputs=3072, kernel=1, stride=1, groups=1)

    def see(self, images: Tensor) -> Tensor:
        """Features [images, (size / 32)^2, features] of still images [images, 3, size, size]."""
        x = self.stem[0](images.to(self.final.weight.dtype))
        for layer in self.stem[1:]:
            x = layer(self.activation(x) * 1.7015043497085571)
        for block in self.blocks:
            x = block(x)
        x = self.activation(self.final(x)) * 1.7015043497085571
        return x.flatten(2).transpose(1, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        # A still image is a video of one frame.
        videos = pixel_values[:, None] if pixel_values.ndim == 4 else pixel_values
        features = self.see(videos.flatten(0, 1))
        return features.reshape(videos.shape[0], -1, features.shape[-1])


class Norm(nn.Module):
    """Normalisation over the last dimension: [..., width]."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, 1e-5)


KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention, self or cross, with grouped key/value heads.

    Queries come from `x` [batch, queries, width]; keys and values, made by `key_value` from
    [batch, keys, source_width], are each [batch, kv_heads, keys, head_dim], so that a cache can
    keep them. Vaswani et al., 2017; grouped heads: Ainslie et al., 2023. There are as many heads as
    the projections give, which ranks may share out.
    """

    def __init__(self, *, width: int, heads: int, kv_heads: int, source_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, heads * 128, bias=False)
        self.key = nn.Linear(source_width, kv_heads * 128, bias=False)
        self.value = nn.Linear(source_width, kv_heads * 128, bias=False)
        self.output = nn.Linear(heads * 128, width, bias=False)

    def key_value(self, source: Tensor) -> KeyValue:
        key = self.key(source).unflatten(-1, (-1, 128)).transpose(1, 2)
        value = self.value(source).unflatten(-1, (-1, 128)).transpose(1, 2)
        return key, value

    def forward(self, x: Tensor, key_value: KeyValue, *, mask: Tensor | None = None) -> Tensor:
        query = self.query(x).unflatten(-1, (-1, 128)).transpose(1, 2)
        key, value = key_value
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(attended.transpose(1, 2).flatten(-2))


class Activation(nn.Module):
    """A pointwise nonlinearity, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        # So et al., 2021 (Primer), section 3.
        return F.relu(x).square()


class MLP(nn.Module):
    """Two projections around an activation, or a gated unit (Shazeer, 2020): [..., width]."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)
        self.activation = Activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class ResamplerBlock(nn.Module):
    """Latents look at the features and at themselves, then pass an MLP: [images, queries, width].

    Keys and values are made of the features [images, tokens, width] and the latents, one after
    the other, each through a norm of its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.source_norm = Norm(width=1536)
        self.latent_norm = Norm(width=1536)
        self.attention = Attention(width=1536, heads=16, kv_heads=16, source_width=1536)
        self.mlp_norm = Norm(width=1536)
        self.mlp = MLP(width=1536, hidden=6144)

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

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3072, 1536, bias=False)
        self.time_embedding = nn.Parameter(torch.zeros(8, 1536))
        self.latents = nn.Parameter(torch.zeros(64, 1536))
        self.layers = nn.ModuleList(ResamplerBlock() for _ in range(6))

    def times(self, embedding: Tensor, shown: int) -> Tensor:
        """Embeddings [shown, width] of the frames of a video of `shown` frames.

        Beyond the trained frames, `embedding` is stretched: the last frame shown stands at its
        last row.
        """
        frame = torch.arange(shown, device=embedding.device).float()
        # Of tensors alone, so that the number of frames may vary in a captured graph.
        step = (7 / frame[-1].clamp(min=1.0)).clamp(max=1.0)
        place = frame * step
        below = place.floor().long().clamp(max=7)
        above = (below + 1).clamp(max=7)
        share = (place - below)[:, None].to(embedding.dtype)
        return torch.lerp(embedding[below], embedding[above], share)

    def forward(self, features: Tensor) -> Tensor:
        features = self.projection(features)
        shown = features.shape[1] // 100
        times = self.times(self.time_embedding, shown)
        features = features + times.repeat_interleave(100, dim=0)
        latents = self.latents.expand(features.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        return latents


class LanguageNorm(nn.Module):
    """Normalisation over the last dimension: [..., width]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4096))

    def forward(self, x: Tensor) -> Tensor:
        # RMSNorm (Zhang and Sennrich, 2019): the mean square is taken in fp32 whatever x is.
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * exact.to(x.dtype)


@dataclass
class Places:
    """Where the newest tokens of a causal sequence stand, and what they may look at.

    `positions` [batch, queries] and `keys` [batch, keys] (either batch may be 1) count tokens that
    are not padding; `mask` [batch, 1, queries, keys], or None where `causal` says it all or every
    query sees every key.
    """

    positions: Tensor
    keys: Tensor
    mask: Tensor | None


class LayerCache:
    """Keys and values of one layer so far, each [batch, kv_heads, tokens, head_dim]."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, key_value: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Adds the newest tokens; returns the keys and values of all tokens."""
        key, value = key_value
        if self.keys is not None and self.values is not None:
            key = torch.cat((self.keys, key), dim=2)
            value = torch.cat((self.values, value), dim=2)
        self.keys, self.values = key, value
        return key, value


def sinusoids(positions: Tensor) -> Tensor:
    """Sines, then cosines, of positions [tokens]: [tokens, width]."""
    exponents = torch.arange(0, 4096, 2, device=positions.device).float() / 4096
    angles = positions[:, None].float() / 10000.0**exponents
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def token_positions(attention_mask: Tensor) -> Tensor:
    """Positions [batch, tokens], counted over tokens that are not padding, wherever it stands."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def causal_mask(attention_mask: Tensor, queries: int, past: int) -> Tensor:
    """The mask [batch, 1, queries, keys] of the newest `queries` tokens of a causal sequence.

    `attention_mask` [batch, keys] is 1 at tokens and 0 at padding, over the `past` tokens too. A
    padded query sees itself, so that no row is empty and no NaN can arise in it. Raises ValueError
    for a mask of another length.
    """
    keys = attention_mask.shape[1]
    if keys != past + queries:
        raise ValueError(
            f"attention_mask covers {keys} tokens, but there are {past} before and {queries} new"
        )
    key = torch.arange(keys, device=attention_mask.device)
    query = key[keys - queries :, None]
    seen = (key <= query) & attention_mask[:, None, :].bool()
    return (seen | (key == query))[:, None]


def places(attention_mask: Tensor | None, x: Tensor, past: int) -> Places:
    """The places of x [batch, queries, width], the newest tokens after `past` others.

    `attention_mask` [batch, past + queries] is 1 at tokens and 0 at padding; None where nothing is
    padding. Raises ValueError for a mask of another length.
    """
    queries = x.shape[1]
    if attention_mask is None:
        keys = torch.arange(past + queries, device=x.device)[None]
        positions = keys[:, past:]
        if past == 0:
            return Places(positions, keys, None)
        if queries == 1:  # the newest token sees all
            return Places(positions, keys, None)
        return Places(positions, keys, (keys <= positions[0, :, None])[None, None])
    keys = token_positions(attention_mask)
    mask = causal_mask(attention_mask, queries, past)
    return Places(keys[:, past:], keys, mask)


class RelativeAttention(nn.Module):
    """Causal attention whose scores depend on the distance of query and key.

    score = ((q + u) . k + (q + v) . W r(distance)) / sqrt(head_dim): [batch, tokens, width].
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(4096, 4096, bias=False)
        self.key = nn.Linear(4096, 4096, bias=False)
        self.value = nn.Linear(4096, 4096, bias=False)
        self.distance = nn.Linear(4096, 4096, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(32, 1, 128))
        self.distance_bias = nn.Parameter(torch.zeros(32, 1, 128))
        self.output = nn.Linear(4096, 4096)

    def split(self, x: Tensor) -> Tensor:
        """[batch, tokens, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
        return x.view(*x.shape[:-1], -1, 128).transpose(1, 2)

    def forward(self, x: Tensor, places: Places, cache: LayerCache | None) -> Tensor:
        query = self.split(self.query(x))
        key, value = self.split(self.key(x)), self.split(self.value(x))
        if cache is not None:
            key, value = cache.append((key, value))
        keys = key.shape[2]
        # Column c of `by_distance` is the score at distance c; a query at position i reads column
        # i - j for the key at position j.
        distances = sinusoids(torch.arange(keys, device=x.device)).to(x.dtype)
        by_distance = (query + self.distance_bias) @ self.split(self.distance(distances)[None]).mT
        distance = places.positions[:, None, :, None] - places.keys[:, None, None, :]
        index = distance.clamp(min=0).expand(*by_distance.shape[:2], -1, -1)
        bias = by_distance.gather(-1, index) * 128**-0.5
        seen = distance >= 0 if places.mask is None else places.mask
        bias = bias.masked_fill(~seen, float("-inf"))
        attended = F.scaled_dot_product_attention(
            query + self.content_bias, key, value, attn_mask=bias
        )
        return self.output(attended.transpose(1, 2).flatten(-2))


class LanguageActivation(nn.Module):
    """A pointwise nonlinearity, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class LanguageMLP(nn.Module):
    """Two projections around an activation, or a gated unit (Shazeer, 2020): [..., width]."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4096, 16384)
        self.down = nn.Linear(16384, 4096)
        self.activation = LanguageActivation()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class RelativeBlock(nn.Module):
    """A pre-norm transformer block with relative attention: [batch, tokens, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = LanguageNorm()
        self.attention = RelativeAttention()
        self.mlp_norm = LanguageNorm()
        self.mlp = LanguageMLP()

    def forward(self, x: Tensor, *, places: Places, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), places, cache)
        return x + self.mlp(self.mlp_norm(x))


class Cache:
    """What a model remembers between two steps of a generation.

    `memory` holds what is computed once for a prompt and read at every step: keys and values of
    images for cross-attention, or those of an encoder's output.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
        self.memory: list[tuple[Tensor, Tensor]] = []
        self.state: dict[str, Tensor] = {}

    def place(self, attention_mask: Tensor | None, x: Tensor) -> Places:
        """The places of x [batch, queries, width], the newest tokens.

        `attention_mask` [batch, tokens so far] holds from now on: left out, it is the one before
        with the new tokens added, or none where none was ever given.
        """
        if attention_mask is None and "attention_mask" in self.state:
            before = self.state["attention_mask"]
            attention_mask = torch.cat((before, before.new_ones(x.shape[:2])), dim=1)
        if attention_mask is not None:
            self.state["attention_mask"] = attention_mask
        return places(attention_mask, x, self.length)

    @property
    def length(self) -> int:
        """Tokens of the sequence that the cache holds."""
        keys = self.layers[0].keys
        return 0 if keys is None else keys.shape[2]


@dataclass
class DecoderContext:
    """What every layer of one forward pass shares."""

    places: Places


class Decoder(nn.Module):
    """Decoder-only transformer: embeddings [batch, tokens, width] -> hidden states, same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32000, 4096)
        # As in Gopher and Chinchilla (Hoffmann et al., 2022, after Rae et al., 2021).
        self.layers = nn.ModuleList(RelativeBlock() for _ in range(32))
        self.norm = LanguageNorm()

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings [batch, tokens, width] of token ids [batch, tokens]."""
        return self.embedding(input_ids)

    def enter(
        self, x: Tensor, attention_mask: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, DecoderContext]:
        """Adds learned positions; makes the mask and the rotation that all layers share.

        `attention_mask` [batch, tokens so far] covers the tokens in the cache too; left out, it is
        the one before with the new tokens added. Raises ValueError for a mask of another length.
        """
        where = places(attention_mask, x, 0) if cache is None else cache.place(attention_mask, x)
        return x, DecoderContext(where)

    def layer(
        self, index: int, x: Tensor, context: DecoderContext, cache: LayerCache | None
    ) -> Tensor:
        """Runs one block."""
        where = context.places
        return self.layers[index](x, places=where, cache=cache)


class LMHead(nn.Module):
    """Logits over the vocabulary: hidden [batch, tokens, width] -> [batch, tokens, vocabulary].

    Tied, it has no weights and reads the embedding; added words have a projection of their own.
    T5 v1.0 scales the hidden states before the tied embedding (Raffel et al., 2020).
    """

    def forward(self, hidden: Tensor, embedding: nn.Embedding) -> Tensor:
        return F.linear(hidden, embedding.weight)


class GatedBlock(nn.Module):
    """Cross-attention and an MLP, each behind a tanh gate that starts shut: [batch, text, width].

    Alayrac et al., 2022 (Flamingo), section 2.2 and appendix A.1.2. `seen` [batch, 1, text, keys]
    is True where a token may look at a visual token; one that sees none gets nothing from the
    cross-attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = Norm(width=4096)
        self.attention = Attention(width=4096, heads=32, kv_heads=32, source_width=4096)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.mlp_norm = Norm(width=4096)
        self.mlp = MLP(width=4096, hidden=16384)
        self.dense_gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, memory: KeyValue | None, seen: Tensor | None) -> Tensor:
        if memory is not None and seen is not None:
            sighted = seen.any(dim=-1, keepdim=True)
            # A row without a single key would be NaN: let it see all, then take nothing from it.
            attended = self.attention(self.attention_norm(x), memory, mask=seen | ~sighted)
            attended = attended.masked_fill(~sighted[:, 0], 0.0)
            x = x + torch.tanh(self.attention_gate) * attended
        return x + torch.tanh(self.dense_gate) * self.mlp(self.mlp_norm(x))


@dataclass
class ModelOutput:
    """Logits [batch, tokens, vocabulary] (or [batch, classes]); the loss where labels were given;
    the cache where one was passed in; logits [batch, 2] of whether image and text belong together
    from a head that judges it."""

    logits: Tensor
    loss: Tensor | None = None
    cache: Cache | None = None


def check_described(images: int, image_sizes: Tensor | None, image_grid_thw: Tensor | None) -> None:
    """Raises ValueError unless what a processor says of the images has a row for each.

    `image_sizes` [images, 2] and `image_grid_thw` [images, 3] tell encoders of varying resolution
    how to read pixels; to one of fixed size they say nothing new.
    """
    for described in (image_sizes, image_grid_thw):
        if described is not None and described.shape[0] != images:
            raise ValueError(f"{described.shape[0]} image sizes for {images} images")


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each next token; labels [batch, tokens] with -100 where none counts."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )


class GatedCrossAttention(nn.Module):
    """Gated blocks before every `every`-th block of the language model look at the images.

    input_ids [batch, text] with an image token for each image; pixel_values [batch, images, 3,
    height, width], or [batch, images, frames, 3, height, width] for videos; logits [batch, text,
    vocabulary]. Images of a row that has fewer than `images` stand last and are seen by nobody.
    `image_attention_mask` [batch, text, images] overrides who sees which image; without it a token
    sees the last image before it, or with `all_previous` every image before it (the image token
    itself sees its own). Alayrac et al., 2022 (Flamingo), section 2.3.
    """

    def __init__(
        self, *, encoder: NFNet, adapter: PerceiverResampler, language: Decoder, head: LMHead
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.language = language
        self.head = head
        self.visual_projection = nn.Linear(1536, 4096, bias=False)
        self.gated_blocks = nn.ModuleList(GatedBlock() for _ in range(8))

    def new_cache(self) -> Cache:
        """An empty cache for a generation."""
        return Cache(len(self.language.layers))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [batch, images, tokens, width]."""
        visual = self.adapter(self.encoder(pixel_values.flatten(0, 1)))
        visual = self.visual_projection(visual)
        return visual.unflatten(0, pixel_values.shape[:2])

    def memorise(self, visual: Tensor) -> list[KeyValue]:
        """Keys and values [rows, heads, tokens, head_dim] of visual tokens [rows, tokens, width]
        for each gated block."""
        return [block.attention.key_value(visual) for block in self.gated_blocks]

    def images_seen(self, input_ids: Tensor, images: int) -> Tensor:
        """Which images each token sees, by the places of the image tokens: [batch, text, images].

        Raises ValueError unless the row with the most image tokens has `images` of them.
        """
        before = (input_ids == 31999).cumsum(dim=1)[..., None]
        if int(before.max()) != images:
            raise ValueError(
                f"{int(before.max())} image tokens in the row of input_ids that has the most, but "
                f"{images} images in each row of pixel_values"
            )
        number = torch.arange(1, images + 1, device=input_ids.device)
        return number == before

    def look(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_attention_mask: Tensor | None,
        cache: Cache | None,
    ) -> tuple[list[KeyValue], Tensor | None]:
        """Keys and values of the images for each gated block, and the mask [batch, 1, text, keys].

        With new images they are made and put into `cache`; without, they are those of `cache`, and
        new tokens see what the last one before them saw. Raises ValueError for a mask over images
        that there are not.
        """
        if pixel_values is not None:
            if cache is not None and cache.length > 0:
                raise ValueError("all images belong to the first call with a cache")
            visual = self.encode_images(pixel_values)
            memory = self.memorise(visual.flatten(1, 2))
            seen = image_attention_mask
            if seen is None:
                seen = self.images_seen(input_ids, visual.shape[1])
        elif cache is not None and "seen" in cache.state:
            memory, seen = cache.memory, image_attention_mask
            if seen is None:
                seen = cache.state["seen"].expand(-1, input_ids.shape[1], -1)
        elif image_attention_mask is None:
            return [], None
        else:
            raise ValueError("image_attention_mask is given, but no pixel_values")
        if cache is not None:
            cache.memory, cache.state["seen"] = memory, seen[:, -1:]
        tokens = memory[0][0].shape[2] // seen.shape[2]
        return memory, seen.bool().repeat_interleave(tokens, dim=-1)[:, None]

    def read(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        memory: list[KeyValue],
        seen: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """Hidden states of embeddings, both [batch, text, width]: the language model's blocks with
        the gated ones between them. `seen` [batch, 1, text, keys] says who sees what of `memory`.
        """
        x, context = self.language.enter(x, attention_mask, cache)
        for index in range(len(self.language.layers)):
            if index % 4 == 0:
                number = index // 4
                block = self.gated_blocks[number]
                x = block(x, memory[number] if memory else None, seen)
            layer_cache = None if cache is None else cache.layers[index]
            x = self.language.layer(index, x, context, layer_cache)
        return self.language.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of hidden states [batch, tokens, width]."""
        return self.head(hidden, self.language.embedding)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        *,
        image_attention_mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> ModelOutput:
        if pixel_values is not None:
            images = pixel_values.shape[0] * pixel_values.shape[1]
            check_described(images, image_sizes, image_grid_thw)
        memory, seen = self.look(input_ids, pixel_values, image_attention_mask, cache)
        x = self.language.embed(input_ids)
        logits = self.logits(self.read(x, attention_mask, memory, seen, cache))
        loss = None if labels is None else next_token_loss(logits, labels)
        return ModelOutput(logits, loss, cache)


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, mapped into memory: a tensor is read when it is used."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    tensors: dict[str, Tensor] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            dtype = DTYPES[entry["dtype"]]
            part = data[begin:end]
            aligned = part if begin % dtype.itemsize == 0 else part.clone()
            tensors[name] = aligned.view(dtype).view(entry["shape"])
    return tensors


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Puts the weights of a folder (model.safetensors, or its shards and their index) into `model`,
    which may be on the meta device. Raises RuntimeError where names or shapes differ.
    """
    index = Path(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_safetensors(Path(folder, file))
    model.load_state_dict(tensors, assign=True)


def build() -> GatedCrossAttention:
    """The whole model, its weights not yet loaded; frozen parts take no gradients."""
    model = GatedCrossAttention(
        encoder=NFNet(), adapter=PerceiverResampler(), language=Decoder(), head=LMHead()
    )
    model.encoder.requires_grad_(False)
    model.language.requires_grad_(False)
    return model
