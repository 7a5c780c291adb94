"""blip2-opt-2.7b. BLIP-2 ViT-g OPT-2.7B (Li et al., 2023), arXiv:2301.12597.

3,744,761,856 parameters, of which 107,130,880 train.

encoder: vit, 985,952,256 parameters, frozen
    takes pixel_values float[images, 3, 224, 224]
    gives features float[images, 257, 1408]
adapter: qformer, 107,130,880 parameters
    takes features float[images, 257, 1408]
    gives visual float[images, 32, 2560]
fusion: query_prefix, no parameters
    takes input_ids int[batch, text]; visual float[images, 32, 2560]
    gives sequence float[batch, sequence, 2560]
language: decoder, 2,651,678,720 parameters, frozen
    takes sequence float[batch, sequence, 2560]
    gives hidden float[batch, sequence, 2560]
head: lm, no parameters
    takes hidden float[batch, sequence, 2560]
    gives logits float[batch, sequence, 50304]

Needs torch only.

    with torch.device("meta"):
        model = build()
    load_weights(model, "weights")
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """Normalisation over the last dimension: [..., width]."""

    def __init__(self, *, width: int, eps: float) -> None:
        super().__init__()
        self.width = width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention, self or cross, with grouped key/value heads.

    Queries come from `x` [batch, queries, width]; keys and values, made by `key_value` from
    [batch, keys, source_width], are each [batch, kv_heads, keys, head_dim], so that a cache can
    keep them. Vaswani et al., 2017; grouped heads: Ainslie et al., 2023. There are as many heads as
    the projections give, which ranks may share out.
    """

    def __init__(
        self, *, width: int, heads: int, kv_heads: int, head_dim: int, source_width: int
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(width, heads * head_dim)
        self.key = nn.Linear(source_width, kv_heads * head_dim)
        self.value = nn.Linear(source_width, kv_heads * head_dim)
        self.output = nn.Linear(heads * head_dim, width)

    def key_value(self, source: Tensor) -> KeyValue:
        key = self.key(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        value = self.value(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return key, value

    def forward(
        self, x: Tensor, key_value: KeyValue, *, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        query = self.query(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key, value = key_value
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal
        )
        return self.output(attended.transpose(1, 2).flatten(-2))


class Activation(nn.Module):
    """A pointwise nonlinearity, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class MLP(nn.Module):
    """Two projections around an activation, or a gated unit (Shazeer, 2020): [..., width]."""

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = Activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class EncoderTransformerBlock(nn.Module):
    """A transformer block, each of its parts a residual branch: [batch, tokens, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = Norm(width=1408, eps=1e-6)
        self.attention = Attention(
            width=1408, heads=16, kv_heads=16, head_dim=88, source_width=1408
        )
        self.mlp_norm = Norm(width=1408, eps=1e-6)
        self.mlp = MLP(width=1408, hidden=6144)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.attention_norm(x)
        key_value = self.attention.key_value(inner)
        x = x + self.attention(inner, key_value, mask=None, causal=False)
        inner = self.mlp_norm(x)
        return x + self.mlp(inner)


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2021).

    [images, 3, size, size], or [images, frames, 3, size, size] where it sees videos, each frame by
    itself -> [images, frames * tokens, channels].
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, 1408, 14, stride=14)
        self.class_embedding = nn.Parameter(torch.zeros(1408))
        self.position_embedding = nn.Parameter(torch.zeros(257, 1408))
        self.layers = nn.ModuleList(EncoderTransformerBlock() for _ in range(39))
        self.post_norm = Norm(width=1408, eps=1e-6)

    def see(self, images: Tensor) -> Tensor:
        """Features of still images [images, 3, size, size]."""
        x = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)
        x = x + self.position_embedding
        for layer in self.layers[:39]:
            x = layer(x)
        return self.post_norm(x)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.see(pixel_values)


class AdapterTransformerBlock(nn.Module):
    """A transformer block, each of its parts a residual branch: [batch, tokens, width]."""

    def __init__(self, *, cross_width: int | None = None) -> None:
        super().__init__()
        self.attention_norm = Norm(width=768, eps=1e-12)
        self.attention = Attention(width=768, heads=12, kv_heads=12, head_dim=64, source_width=768)
        self.cross_norm = None
        self.cross = None
        if cross_width is not None:
            self.cross_norm = Norm(width=768, eps=1e-12)
            self.cross = Attention(
                width=768, heads=12, kv_heads=12, head_dim=64, source_width=cross_width
            )
        self.mlp_norm = Norm(width=768, eps=1e-12)
        self.mlp = MLP(width=768, hidden=3072)

    def forward(self, x: Tensor, *, memory: KeyValue | None = None) -> Tensor:
        key_value = self.attention.key_value(x)
        x = x + self.attention(x, key_value, mask=None, causal=False)
        x = self.attention_norm(x)
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x = x + self.cross(x, memory, mask=None)
            x = self.cross_norm(x)
        x = x + self.mlp(x)
        return self.mlp_norm(x)


class QFormer(nn.Module):
    """Learned queries read an image: [images, tokens, source_width] -> [images, queries, width].

    A BERT encoder over the queries alone, with cross-attention into the image in every
    `cross_attention_every`-th layer from the first on, and a projection to the language model's
    width (Li et al., 2023, BLIP-2, section 3.1). It computes in the dtype of its own weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(32, 768))
        self.norm = Norm(width=768, eps=1e-12)
        self.layers = nn.ModuleList(
            AdapterTransformerBlock(cross_width=1408 if index % 2 == 0 else None)
            for index in range(12)
        )
        self.projection = nn.Linear(768, 2560)

    def forward(self, features: Tensor) -> Tensor:
        features = features.to(self.queries.dtype)
        x = self.norm(self.queries).expand(features.shape[0], -1, -1)
        for layer in self.layers:
            memory = None if layer.cross is None else layer.cross.key_value(features)
            x = layer(x, memory=memory)
        return self.projection(x)


class LanguageActivation(nn.Module):
    """A pointwise nonlinearity, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class LanguageMLP(nn.Module):
    """Two projections around an activation, or a gated unit (Shazeer, 2020): [..., width]."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(2560, 10240)
        self.down = nn.Linear(10240, 2560)
        self.activation = LanguageActivation()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


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


class LanguageTransformerBlock(nn.Module):
    """A transformer block, each of its parts a residual branch: [batch, tokens, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = Norm(width=2560, eps=1e-5)
        self.attention = Attention(
            width=2560, heads=32, kv_heads=32, head_dim=80, source_width=2560
        )
        self.mlp_norm = Norm(width=2560, eps=1e-5)
        self.mlp = LanguageMLP()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        inner = self.attention_norm(x)
        key_value = self.attention.key_value(inner)
        if cache is not None:
            key_value = cache.append(key_value)
        x = x + self.attention(inner, key_value, mask=mask, causal=causal)
        inner = self.mlp_norm(x)
        return x + self.mlp(inner)


@dataclass
class Places:
    """Where the newest tokens of a causal sequence stand, and what they may look at.

    `positions` [batch, queries] and `keys` [batch, keys] (either batch may be 1) count tokens that
    are not padding; `mask` [batch, 1, queries, keys], or None where `causal` says it all or every
    query sees every key.
    """

    positions: Tensor
    mask: Tensor | None
    causal: bool


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
            return Places(positions, None, True)
        if queries == 1:  # the newest token sees all
            return Places(positions, None, False)
        return Places(positions, (keys <= positions[0, :, None])[None, None], False)
    keys = token_positions(attention_mask)
    mask = causal_mask(attention_mask, queries, past)
    return Places(keys[:, past:], mask, False)


class Cache:
    """What a model remembers between two steps of a generation.

    `memory` holds what is computed once for a prompt and read at every step: keys and values of
    images for cross-attention, or those of an encoder's output.
    """

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]
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
        self.embedding = nn.Embedding(50304, 2560)
        # As in OPT (Zhang et al., 2022).
        self.position_embedding = nn.Embedding(2050, 2560)
        self.layers = nn.ModuleList(LanguageTransformerBlock() for _ in range(32))
        self.norm = Norm(width=2560, eps=1e-5)

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
        x = x + self.position_embedding(where.positions + 2)
        return x, DecoderContext(where)

    def layer(
        self, index: int, x: Tensor, context: DecoderContext, cache: LayerCache | None
    ) -> Tensor:
        """Runs one block."""
        where = context.places
        return self.layers[index](x, mask=where.mask, causal=where.causal, cache=cache)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        x, context = self.enter(x, attention_mask, cache)
        for index in range(len(self.layers)):
            x = self.layer(index, x, context, None if cache is None else cache.layers[index])
        return self.norm(x)


class LMHead(nn.Module):
    """Logits over the vocabulary: hidden [batch, tokens, width] -> [batch, tokens, vocabulary].

    Tied, it has no weights and reads the embedding; added words have a projection of their own.
    T5 v1.0 scales the hidden states before the tied embedding (Raffel et al., 2020).
    """

    def forward(self, hidden: Tensor, embedding: nn.Embedding) -> Tensor:
        return F.linear(hidden, embedding.weight)


def fill_places(words: Tensor, is_place: Tensor, features: Tensor) -> Tensor:
    """Words [batch, text, width] with visual tokens [images, tokens, width] in the places marked in
    `is_place` [batch, text], in the order in which they stand in the batch.

    Raises ValueError unless there are as many places as visual tokens, and in each row as many as
    whole images have.
    """
    images, tokens, _ = features.shape
    if int(is_place.sum()) != images * tokens:
        raise ValueError(
            f"{int(is_place.sum())} placeholders in input_ids but {images * tokens} visual tokens "
            f"from {images} images"
        )
    if bool((is_place.sum(dim=1) % tokens).any()):
        raise ValueError(
            f"the placeholders of a row of input_ids are no multiple of the {tokens} visual tokens "
            "of an image"
        )
    return words.masked_scatter(is_place[..., None], features.to(words.dtype))


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


class Prefix(nn.Module):
    """Visual tokens stand before the text: a soft prompt (Li et al., 2023, BLIP-2, section 3.3).

    input_ids [batch, text]; pixel_values [images, 3, height, width] in the order in which the
    images stand in the batch. Where input_ids hold the placeholder, visual tokens take its places
    (several images may stand between words); where they hold none, those of a row's images are put
    in front of its text, and the sequence grows by them: sequence = visual + text. An attention
    mask stays that of input_ids.

    A decoder gives logits [batch, sequence, vocabulary] and reads labels [batch, text], which stand
    at the last `text` positions: visual tokens are never asked for. An encoder-decoder gives logits
    [batch, target, vocabulary] for decoder_input_ids [batch, target], or for labels [batch, target]
    shifted right, or for its start token alone.
    """

    def __init__(self, *, encoder: ViT, adapter: QFormer, language: Decoder, head: LMHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.language = language
        self.head = head

    def new_cache(self) -> Cache:
        """An empty cache for a generation."""
        return Cache(len(self.language.layers))

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Visual tokens [images, tokens, width]."""
        return self.adapter(self.encoder(pixel_values))

    def join(
        self, input_ids: Tensor, pixel_values: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [batch, sequence, width], and the mask [batch, visual] of what stands in front
        of input_ids, now or since the cache was new."""
        words = self.language.embed(input_ids)
        if pixel_values is None:
            return words, None if cache is None else cache.state.get("front")
        features = self.encode_images(pixel_values)
        is_place = input_ids == 50265
        if bool(is_place.any()):
            return fill_places(words, is_place, features), None
        if cache is not None and cache.length > 0:
            raise ValueError("images in front of the text belong to the first call with a cache")
        batch = input_ids.shape[0]
        if features.shape[0] % batch:
            raise ValueError(f"{features.shape[0]} images for {batch} rows without placeholders")
        visual = features.reshape(batch, -1, features.shape[-1]).to(words.dtype)
        front = input_ids.new_ones(visual.shape[:2])
        if cache is not None:
            cache.state["front"] = front
        return torch.cat((visual, words), dim=1), front

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of hidden states [batch, tokens, width]."""
        return self.head(hidden, self.language.embedding)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> ModelOutput:
        x = None
        if pixel_values is not None:
            check_described(pixel_values.shape[0], image_sizes, image_grid_thw)
        if input_ids is not None:
            x, front = self.join(input_ids, pixel_values, cache)
            if front is not None and attention_mask is not None:
                attention_mask = torch.cat((front.to(attention_mask.dtype), attention_mask), dim=1)
        if x is None or decoder_input_ids is not None or decoder_attention_mask is not None:
            raise ValueError("a decoder needs input_ids and takes no decoder_* inputs")
        logits = self.logits(self.language(x, attention_mask, cache))
        loss = None
        if labels is not None:
            visual = logits.shape[1] - labels.shape[1]
            loss = next_token_loss(logits, F.pad(labels, (visual, 0), value=-100))
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


def build() -> Prefix:
    """The whole model, its weights not yet loaded; frozen parts take no gradients."""
    model = Prefix(encoder=ViT(), adapter=QFormer(), language=Decoder(), head=LMHead())
    model.encoder.requires_grad_(False)
    model.language.requires_grad_(False)
    return model
