"""visualbert-vqa. VisualBERT for visual question answering (Li et al., 2019), arXiv:1908.03557.

113,266,233 parameters, of which 113,266,233 train.

encoder: regions, no parameters
    takes visual_embeds float[images, 36, 2048]
    gives features float[images, 36, 2048]
adapter: linear, 1,573,632 parameters
    takes features float[images, 36, 2048]
    gives visual float[images, 36, 768]
fusion: single_stream, 394,752 parameters
    takes input_ids int[batch, text]; visual float[images, 36, 768]
    gives sequence float[batch, sequence, 768]
language: encoder, 108,891,648 parameters
    takes sequence float[batch, sequence, 768]
    gives hidden float[batch, sequence, 768]
head: classify, 2,406,201 parameters
    takes hidden float[batch, sequence, 768]
    gives logits float[batch, 3129]

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


class Regions(nn.Module):
    """Hands precomputed features [rows, regions, width] on as visual tokens; has no parameters.

    Anderson et al., 2018 (bottom-up attention): the usual source is an object detector.
    """

    def forward(self, visual_embeds: Tensor) -> Tensor:
        if visual_embeds.shape[-1] != 2048:
            raise ValueError(
                f"region features have {visual_embeds.shape[-1]} channels, expected 2048"
            )
        return visual_embeds


class MLPAdapter(nn.Module):
    """Linear layers with an activation between them: [..., source_width] -> [..., width].

    Liu et al., 2023 (LLaVA-1.5), section 3.2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(2048 if index == 0 else 768, 768) for index in range(1)
        )

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = layer(features)
        return features


class Norm(nn.Module):
    """Normalisation over the last dimension: [..., width]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(768))
        self.bias = nn.Parameter(torch.zeros(768))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (768,), self.weight, self.bias, 1e-12)


KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention, self or cross, with grouped key/value heads.

    Queries come from `x` [batch, queries, width]; keys and values, made by `key_value` from
    [batch, keys, source_width], are each [batch, kv_heads, keys, head_dim], so that a cache can
    keep them. Vaswani et al., 2017; grouped heads: Ainslie et al., 2023. There are as many heads as
    the projections give, which ranks may share out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(768, 768)
        self.key = nn.Linear(768, 768)
        self.value = nn.Linear(768, 768)
        self.output = nn.Linear(768, 768)

    def key_value(self, source: Tensor) -> KeyValue:
        key = self.key(source).unflatten(-1, (-1, 64)).transpose(1, 2)
        value = self.value(source).unflatten(-1, (-1, 64)).transpose(1, 2)
        return key, value

    def forward(self, x: Tensor, key_value: KeyValue, *, mask: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (-1, 64)).transpose(1, 2)
        key, value = key_value
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(attended.transpose(1, 2).flatten(-2))


class Activation(nn.Module):
    """A pointwise nonlinearity, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class MLP(nn.Module):
    """Two projections around an activation, or a gated unit (Shazeer, 2020): [..., width]."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(768, 3072)
        self.down = nn.Linear(3072, 768)
        self.activation = Activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class TransformerBlock(nn.Module):
    """A transformer block, each of its parts a residual branch: [batch, tokens, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = Norm()
        self.attention = Attention()
        self.mlp_norm = Norm()
        self.mlp = MLP()

    def forward(self, x: Tensor, *, mask: Tensor) -> Tensor:
        key_value = self.attention.key_value(x)
        x = x + self.attention(x, key_value, mask=mask)
        x = self.attention_norm(x)
        x = x + self.mlp(x)
        return self.mlp_norm(x)


def padding_mask(attention_mask: Tensor) -> Tensor:
    """The mask [batch, 1, 1, keys] of a sequence in which every token sees every token."""
    return attention_mask[:, None, None, :].bool()


class TextEncoder(nn.Module):
    """Bidirectional transformer with its norms after the sums: embeddings [batch, tokens, width] ->
    hidden states, same shape. BERT (Devlin et al., 2019).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30522, 768)
        self.position_embedding = nn.Embedding(512, 768)
        self.token_type_embedding = nn.Embedding(2, 768)
        self.embedding_norm = Norm()
        self.layers = nn.ModuleList(TransformerBlock() for _ in range(12))

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Words with their types and positions [batch, tokens, width], before the first norm."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        words = self.embedding(input_ids) + self.token_type_embedding(token_type_ids)
        return words + self.position_embedding(positions)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        mask = padding_mask(attention_mask)
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x, mask=mask)
        return x


@dataclass
class ModelOutput:
    """Logits [batch, tokens, vocabulary] (or [batch, classes]); the loss where labels were given;
    the cache where one was passed in; logits [batch, 2] of whether image and text belong together
    from a head that judges it."""

    logits: Tensor
    loss: Tensor | None = None


class Classify(nn.Module):
    """Logits over classes from one hidden state: [batch, tokens, width] -> [batch, classes].

    `last_word` reads the state before the closing token of the text, as VisualBERT's question
    answering does (Li et al., 2019, section 4.1); `first` reads BERT's pooled first token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(768, 3129)

    def read(self, hidden: Tensor, text_mask: Tensor) -> Tensor:
        """The state [batch, width] that decides; text_mask [batch, text] is 0 at padding."""
        last = (text_mask.long().sum(1) - 2).clamp(min=0)
        return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]

    def forward(
        self,
        hidden: Tensor,
        text_mask: Tensor,
        labels: Tensor | None = None,
        sentence_image_labels: Tensor | None = None,
    ) -> ModelOutput:
        """Labels are scores [batch, classes] (their divergence is the loss) or classes [batch]."""
        if sentence_image_labels is not None:
            raise ValueError("sentence_image_labels are given, but this head judges no pairs")
        logits = self.classifier(self.read(hidden, text_mask))
        loss = None
        if labels is not None and labels.is_floating_point():
            loss = F.kl_div(F.log_softmax(logits, dim=-1), labels, reduction="batchmean")
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return ModelOutput(logits, loss)


def check_described(images: int, image_sizes: Tensor | None, image_grid_thw: Tensor | None) -> None:
    """Raises ValueError unless what a processor says of the images has a row for each.

    `image_sizes` [images, 2] and `image_grid_thw` [images, 3] tell encoders of varying resolution
    how to read pixels; to one of fixed size they say nothing new.
    """
    for described in (image_sizes, image_grid_thw):
        if described is not None and described.shape[0] != images:
            raise ValueError(f"{described.shape[0]} image sizes for {images} images")


class SingleStream(nn.Module):
    """Words and visual tokens in one sequence of a text encoder (Li et al., 2019, section 3.2).

    input_ids [batch, text]; visual_embeds [batch, regions, channels], or pixel_values [images, 3,
    height, width] with as many images in each row of the batch; visual tokens follow the words.
    image_text_alignment [batch, regions, words] names the words of each region, -1 where none.
    """

    def __init__(
        self, *, encoder: Regions, adapter: MLPAdapter, language: TextEncoder, head: Classify
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.language = language
        self.head = head
        self.visual_type_embedding = nn.Embedding(2, 768)
        self.visual_position_embedding = nn.Embedding(512, 768)

    def encode_images(self, visual_embeds: Tensor) -> Tensor:
        """Visual tokens [rows, tokens, width] of region features or of pixel values."""
        dtype = self.visual_type_embedding.weight.dtype
        return self.adapter(self.encoder(visual_embeds.to(dtype)))

    def align(self, image_text_alignment: Tensor) -> Tensor:
        """The mean position embedding of each region's words: [batch, regions, width]."""
        present = (image_text_alignment >= 0).to(self.visual_position_embedding.weight.dtype)
        words = self.language.position_embedding(image_text_alignment.clamp(min=0))
        total = (words * present[..., None]).sum(2)
        return total / present.sum(2).clamp(min=1)[..., None]

    def place(
        self, visual: Tensor, types: Tensor | None, image_text_alignment: Tensor | None
    ) -> Tensor:
        """Adds positions (0 for all, and those of aligned words) and types to visual tokens."""
        shape, device = visual.shape[:2], visual.device
        positions = self.visual_position_embedding(
            torch.zeros(shape, dtype=torch.long, device=device)
        )
        if image_text_alignment is not None:
            # A batch may be padded to more regions than there are features.
            positions = self.align(image_text_alignment[:, : shape[1]]) + positions
        if types is None:
            types = torch.ones(shape, dtype=torch.long, device=device)
        return visual + positions + self.visual_type_embedding(types)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        visual_embeds: Tensor | None = None,
        visual_attention_mask: Tensor | None = None,
        visual_token_type_ids: Tensor | None = None,
        image_text_alignment: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        sentence_image_labels: Tensor | None = None,
        *,
        image_sizes: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
    ) -> ModelOutput:
        x = self.language.embed(input_ids, token_type_ids)
        text_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = pixel_values if visual_embeds is None else visual_embeds
        if seen is None:
            hidden = self.language(x, text_mask)
        else:
            check_described(seen.shape[0], image_sizes, image_grid_thw)
            visual = self.encode_images(seen)
            visual = visual.reshape(input_ids.shape[0], -1, visual.shape[-1])
            visual = self.place(visual, visual_token_type_ids, image_text_alignment)
            hidden = self.read(x, text_mask, visual, visual_attention_mask)
        return self.head(hidden, text_mask, labels, sentence_image_labels)

    def read(self, x: Tensor, mask: Tensor, visual: Tensor, visual_mask: Tensor | None) -> Tensor:
        """Hidden states [batch, text + visual, width] of words and placed visual tokens, each
        [batch, tokens, width] with its mask [batch, tokens]."""
        if visual_mask is None:
            visual_mask = torch.ones(visual.shape[:2], dtype=mask.dtype, device=mask.device)
        mask = torch.cat((mask, visual_mask.to(mask.dtype)), dim=1)
        return self.language(torch.cat((x, visual), dim=1), mask)


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


def build() -> SingleStream:
    """The whole model, its weights not yet loaded."""
    return SingleStream(
        encoder=Regions(), adapter=MLPAdapter(), language=TextEncoder(), head=Classify()
    )
