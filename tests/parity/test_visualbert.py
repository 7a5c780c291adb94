"""VisualBERT against transformers' VisualBertForPreTraining and VisualBertForQuestionAnswering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import (
    FLOOR,
    arch_of,
    assert_gradients,
    changed,
    distance,
    loaded,
    mutant,
    randomise,
    saved,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    VisualBertConfig,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
    VisualBertForVisualReasoning,
)

from vlmc.builder.checkpoint import load_part
from vlmc.builder.model import instantiate
from vlmc.diagnostics import UsageError

VOCABULARY, REGIONS, CHANNELS, CLASSES = 99, 5, 24, 11

DOCUMENT: dict[str, Any] = {
    "encoder": {"kind": "regions", "count": REGIONS, "width": CHANNELS},
    "adapter": {"kind": "linear"},
    "fusion": {"kind": "single_stream"},
    "language": {
        "kind": "encoder",
        "width": 32,
        "layers": 3,
        "heads": 4,
        "hidden": 64,
        "vocabulary": VOCABULARY,
        "context": 64,
    },
    "head": {"kind": "masked_lm"},
    "token_budget": {"images": 1, "text": 32},
}
CLASSIFY = changed(DOCUMENT, "head", {"kind": "classify", "classes": CLASSES})
FIRST = changed(CLASSIFY, "head.pool", "first")


def config(**changes: Any) -> VisualBertConfig:
    return VisualBertConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "visual_embedding_dim": CHANNELS,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "num_labels": CLASSES,
            **changes,
        }
    )


class Pair:
    """A reference, its checkpoint, and our model loaded from it."""

    def __init__(self, kind: type[Any], folder: Path, document: dict[str, Any]) -> None:
        self.folder, self.document = folder, document
        self.reference: Any = kind(config())
        randomise(self.reference)
        saved(self.reference, folder)
        self.ours = loaded(document, folder)

    def error(self, inputs: dict[str, Tensor], ours: nn.Module | None = None) -> float:
        """Our largest error. The reference has one attention kernel only, so that there is no
        noise of its own to measure and the tolerance is the floor."""
        with torch.no_grad():
            theirs = self.reference(**inputs)
            mine = (ours or self.ours)(**inputs)
        if "logits" in theirs:
            return distance(mine.logits, theirs.logits)
        rows = inputs["attention_mask"].bool()
        if "visual_embeds" in inputs:
            rows = torch.cat((rows, inputs["visual_attention_mask"].bool()), dim=1)
        pairs = distance(mine.seq_relationship_logits, theirs.seq_relationship_logits)
        return max(pairs, distance(mine.logits, theirs.prediction_logits, rows))


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(VisualBertForPreTraining, tmp_path_factory.mktemp("pretraining"), DOCUMENT)


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(VisualBertForQuestionAnswering, tmp_path_factory.mktemp("answering"), CLASSIFY)


@pytest.fixture(scope="module")
def reasoning(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(VisualBertForVisualReasoning, tmp_path_factory.mktemp("reasoning"), FIRST)


@pytest.fixture(params=["pretraining", "answering", "reasoning"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)


def one() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (1, 9))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "visual_embeds": torch.randn(1, REGIONS, CHANNELS),
        "visual_attention_mask": torch.ones(1, REGIONS, dtype=torch.long),
    }


def text_only() -> dict[str, Tensor]:
    inputs = one()
    return {name: inputs[name] for name in ("input_ids", "attention_mask")}


def several_images() -> dict[str, Tensor]:
    """Two images in one row are their regions, one after the other."""
    inputs = one()
    inputs["visual_embeds"] = torch.randn(1, 2 * REGIONS, CHANNELS)
    inputs["visual_attention_mask"] = torch.ones(1, 2 * REGIONS, dtype=torch.long)
    return inputs


def padded() -> dict[str, Tensor]:
    """Words and regions padded, sentences of two types, and regions of type 0 among those of 1."""
    torch.manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (3, 9))
    mask, regions = torch.ones_like(ids), torch.ones(3, REGIONS, dtype=torch.long)
    mask[1, 6:] = 0
    mask[2, 4:] = 0
    regions[1, 2:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (torch.arange(9) > 3).long().expand(3, -1),
        "visual_embeds": torch.randn(3, REGIONS, CHANNELS),
        "visual_attention_mask": regions,
        "visual_token_type_ids": torch.randint(0, 2, (3, REGIONS)),
    }


def aligned() -> dict[str, Tensor]:
    """Regions with two, one and no words of their own; the alignment is padded to more regions."""
    inputs = padded()
    alignment = torch.randint(-1, 9, (3, REGIONS + 2, 3))
    alignment[:, 0] = torch.tensor([4, 7, -1])
    alignment[:, 1] = torch.tensor([2, -1, -1])
    alignment[:, 2] = -1
    return {**inputs, "image_text_alignment": alignment}


INPUTS = [one, text_only, several_images, padded, aligned]


@pytest.mark.parametrize("inputs", INPUTS)
def test_logits(pair: Pair, inputs: Any) -> None:
    assert pair.error(inputs()) <= FLOOR


def test_defaults_are_the_references(answering: Pair) -> None:
    """Masks and types left out mean all ones and type 1."""
    inputs = one()
    bare = {"input_ids": inputs["input_ids"], "visual_embeds": inputs["visual_embeds"]}
    with torch.no_grad():
        got = answering.ours(**bare).logits
        expected = answering.reference(**inputs).logits
    assert distance(got, expected) <= FLOOR


def test_other_regions_change_the_logits(pair: Pair) -> None:
    inputs = aligned()
    with torch.no_grad():
        before = pair.ours(**inputs).logits
        inputs["visual_embeds"] = torch.randn_like(inputs["visual_embeds"])
        assert distance(pair.ours(**inputs).logits, before) > 1e-2


def test_gradients_of_pretraining(pretraining: Pair) -> None:
    inputs = aligned()
    labels = torch.randint(0, VOCABULARY, (3, 9 + REGIONS))
    labels[torch.rand(labels.shape) > 0.4] = -100
    inputs["sentence_image_labels"] = torch.tensor([0, 1, 1])
    compared = assert_gradients(
        pretraining.reference, pretraining.ours, pretraining.folder, inputs, labels
    )
    assert compared == {name for name, _ in pretraining.ours.named_parameters()}


def test_gradients_of_answering(answering: Pair) -> None:
    labels = torch.rand(3, CLASSES).softmax(-1)
    compared = assert_gradients(
        answering.reference, answering.ours, answering.folder, aligned(), labels
    )
    assert compared == {name for name, _ in answering.ours.named_parameters()}


def test_gradients_of_reasoning(reasoning: Pair) -> None:
    labels = torch.tensor([3, 0, 10])
    compared = assert_gradients(
        reasoning.reference, reasoning.ours, reasoning.folder, aligned(), labels
    )
    assert compared == {name for name, _ in reasoning.ours.named_parameters()}


MISTAKES: dict[str, dict[str, Any]] = {
    "eps of 1e-5": {"language.norm_eps": 1e-5},
    "eps of 1e-6": {"language.norm_eps": 1e-6},
    "tanh gelu": {"language.activation": "gelu_tanh"},
    "tanh gelu in the head": {"head.activation": "gelu_tanh"},
    "eps of the head": {"head.norm_eps": 1e-5},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_design_is_caught(pretraining: Pair, name: str) -> None:
    document = DOCUMENT
    for path, value in MISTAKES[name].items():
        document = changed(document, path, value)
    assert pretraining.error(aligned(), mutant(pretraining.ours, document)) > FLOOR
    with pytest.raises(UsageError, match=r"config\.json"):
        loaded(document, pretraining.folder)


def _running_positions(self: Any, visual: Tensor, types: Tensor, alignment: Any) -> Tensor:
    """Visual tokens at positions 0, 1, 2, ... of the visual position embedding."""
    running = self.visual_position_embedding(torch.arange(visual.shape[1]))
    return visual + running + self.visual_type_embedding(types)


def _text_types(self: Any, visual: Tensor, types: Tensor, alignment: Any) -> Tensor:
    """The types of the text in place of those of the regions."""
    zero = self.visual_position_embedding(torch.zeros(visual.shape[:2], dtype=torch.long))
    return visual + zero + self.language.token_type_embedding(types)


@pytest.mark.parametrize("broken", [_running_positions, _text_types])
def test_a_mistake_in_placing_is_caught(
    pair: Pair, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pair.ours), "place", broken)
    assert pair.error(padded()) > FLOOR


def _sum_of_words(self: Any, alignment: Tensor) -> Tensor:
    present = (alignment >= 0).float()
    return (self.language.position_embedding(alignment.clamp(min=0)) * present[..., None]).sum(2)


def _padding_is_word_0(self: Any, alignment: Tensor) -> Tensor:
    return self.language.position_embedding(alignment.clamp(min=0)).mean(2)


def _visual_positions(self: Any, alignment: Tensor) -> Tensor:
    present = (alignment >= 0).float()
    words = self.visual_position_embedding(alignment.clamp(min=0)) * present[..., None]
    return words.sum(2) / present.sum(2).clamp(min=1)[..., None]


@pytest.mark.parametrize("broken", [_sum_of_words, _padding_is_word_0, _visual_positions])
def test_a_mistake_in_the_alignment_is_caught(
    pair: Pair, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pair.ours), "align", broken)
    assert pair.error(aligned()) > FLOOR


def test_a_decoder_that_is_not_the_embedding_is_caught(
    pretraining: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = pretraining.ours.head
    answer = head.forward

    def untied(hidden: Tensor, mask: Tensor, embedding: nn.Embedding, *rest: Any) -> Any:
        other = nn.Embedding.from_pretrained(torch.randn_like(embedding.weight))
        return answer(hidden, mask, other, *rest)

    monkeypatch.setattr(head, "forward", untied)
    assert pretraining.error(aligned()) > FLOOR


@pytest.mark.parametrize("shift", [-1, -3])
def test_another_word_that_answers_is_caught(
    answering: Pair, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: Any, hidden: Tensor, text_mask: Tensor) -> Tensor:
        return hidden[torch.arange(len(hidden)), text_mask.sum(1) + shift]

    monkeypatch.setattr(type(answering.ours.head), "read", read)
    assert answering.error(padded()) > FLOOR


def test_the_language_model_of_a_bert(tmp_path: Path) -> None:
    """`weights:` of the language part may name a BERT; its first published spelling is read too."""
    reference = BertForPreTraining(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )
    randomise(reference)
    saved(reference, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, former in old.items():
        tensors = {name.replace(new, former): value for name, value in tensors.items()}
    save_file(tensors, path)
    arch = arch_of(DOCUMENT)
    model = instantiate(arch)
    load_part(model, arch, "language", tmp_path)
    missing = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    assert missing == {
        "adapter.layers.0.weight",
        "adapter.layers.0.bias",
        "visual_type_embedding.weight",
        "visual_position_embedding.weight",
    }
    ids = torch.randint(3, VOCABULARY, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        expected = reference.eval()(input_ids=ids, attention_mask=mask)
        got = model.eval()(input_ids=ids, attention_mask=mask)
    assert distance(got.logits, expected.prediction_logits, mask) <= FLOOR
    assert distance(got.seq_relationship_logits, expected.seq_relationship_logits) <= FLOOR
