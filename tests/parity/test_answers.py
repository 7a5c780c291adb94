"""`vlmc run --checkpoint` on real files says what transformers says: from a PNG, a prompt, a
tokenizer file and a folder that transformers saved, to the same tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import randomise
from PIL import Image
from safetensors.torch import save_file
from tokenizer_files import bert, llama, opt, save, t5
from tokenizers import Tokenizer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    CLIPVisionConfig,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
    T5Config,
    VisualBertConfig,
    VisualBertForQuestionAnswering,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from typer.testing import CliRunner

from vlmc.commands import app

NEW = 24
VOCABULARY = 352
VIT = {"kind": "vit", "image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4}
EVA = {
    **VIT,
    "hidden": 64,
    "activation": "gelu",
    "norm_eps": 1e-6,
    "patch_bias": True,
    "pre_norm": False,
    "features": {"layer": -1, "norm": True},
}
QFORMER = {"kind": "qformer", "queries": 5, "layers": 2, "width": 48, "heads": 4, "hidden": 80}
CROP = {"height": 32, "width": 32}


def photo(path: Path) -> Path:
    """A picture that is neither square nor of the model's size."""
    pixels = np.random.default_rng(5).integers(0, 256, (37, 61, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def words(file: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=file, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def vlmc_run(tmp_path: Path, document: dict[str, Any], *options: str) -> dict[str, Any]:
    """What `vlmc run --json` prints."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps({"schema": 1, **document}))
    command = ["run", str(spec), "--checkpoint", str(tmp_path / "model"), "--json"]
    done = CliRunner().invoke(app, [*command, "--max-new-tokens", str(NEW), *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def said(model: Any, file: Tokenizer, inputs: Any) -> list[int]:
    """What transformers' generate answers greedily, up to the end of the text."""
    with torch.no_grad():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)[0].tolist()
    if not model.config.is_encoder_decoder and len(tokens) > NEW:
        tokens = tokens[inputs["input_ids"].shape[1] :]
    elif tokens[0] == 0:
        tokens = tokens[1:]  # the decoder's start token
    stop = file.token_to_id("</s>")
    return tokens[: tokens.index(stop)] if stop in tokens else tokens


def saved(model: Any, folder: Path, file: Tokenizer, inputs: Any, pictures: Any) -> list[int]:
    """Saves a model whose answer is varied enough to show a mistake; returns the answer."""
    expected: list[int] = []
    for seed in range(50):
        randomise(model, seed=seed)
        expected = said(model, file, inputs)
        if len(set(expected)) >= 6:
            break
    assert len(set(expected)) >= 6
    model.save_pretrained(folder)
    save(file, folder)
    pictures.save_pretrained(folder)
    return expected


def assert_same(answer: dict[str, Any], expected: list[int], file: Tokenizer) -> None:
    assert answer["tokens"] == expected
    text = file.decode(expected)
    assert answer["text"] == text or "\ufffd" in text


def test_llava(tmp_path: Path) -> None:
    file = llama(["<image>"])
    image_token = file.token_to_id("<image>")
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        rms_norm_eps=1e-5,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=CROP, resample=2)
    prompt = "USER: <image>\nWhat is in the picture? ASSISTANT:"
    picture = photo(tmp_path / "photo.png")
    reference = LlavaProcessor(
        pictures,
        words(file),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    inputs = reference(images=[Image.open(picture)], text=prompt, return_tensors="pt")
    expected = saved(model, tmp_path / "model", file, inputs, pictures)
    document = {
        "encoder": {
            **VIT,
            "hidden": 64,
            "activation": "quick_gelu",
            "features": {"layer": -2, "drop_cls": True},
        },
        "adapter": "mlp",
        "fusion": {"kind": "placeholder", "token": image_token},
        "language": {
            "width": 64,
            "layers": 2,
            "heads": 4,
            "hidden": 96,
            "vocabulary": VOCABULARY,
            "context": 2048,
            "norm_eps": 1e-5,
        },
    }
    answer = vlmc_run(tmp_path, document, "--image", str(picture), "--prompt", prompt)
    assert answer["prompt"] == {
        "text_tokens": inputs["input_ids"].shape[1] - 16,
        "visual_tokens": 16,
        "images": 1,
    }
    assert_same(answer, expected, file)
    a_build_answers_alike(tmp_path, "--image", str(picture), "--prompt", prompt)
    seeded_parts_are_named(tmp_path, document, "--image", str(picture), "--prompt", prompt)


def a_build_answers_alike(tmp_path: Path, *question: str) -> None:
    """The same tokens from the build folder alone, up to the token that ends this checkpoint's
    answers and through its own preprocessing."""
    spec, model, out = tmp_path / "spec.yaml", tmp_path / "model", tmp_path / "out"

    def asked(*words: str) -> dict[str, Any]:
        command = ["run", *words, *question, "--json", "--max-new-tokens", str(NEW)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    whole = asked(str(spec), "--checkpoint", str(model))["tokens"]
    last = next(token for token in whole[2:] if token != whole[0])
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": last}))
    done = CliRunner().invoke(
        app, ["build", str(spec), "--checkpoint", str(model), "--output", str(out)]
    )
    assert done.exit_code == 0, done.output
    direct = asked(str(spec), "--checkpoint", str(model))
    model.rename(tmp_path / "gone")
    for built in (asked(str(out)), asked(str(spec), "--checkpoint", str(out))):
        for key in ("tokens", "text", "finish", "prompt"):
            assert built[key] == direct[key], key
        assert built["finish"] == "stop"
        assert built["seeded_parts"] == []
    manifest = json.loads((out / "manifest.json").read_text())
    carried = {
        *("weights/tokenizer.json", "weights/generation_config.json", "weights/config.json"),
        "weights/preprocessor_config.json",
    }
    assert carried <= set(manifest["artifacts"]["weights"]["files"])
    tilted = {"image_mean": [0.9, 0.1, 0.9], "image_std": [0.01, 0.02, 0.03]}
    (out / "preprocessor_config.json").write_text(json.dumps(tilted))
    assert asked(str(out))["tokens"] != direct["tokens"], "a file put there by hand comes first"
    (out / "weights" / "preprocessor_config.json").unlink()
    (tmp_path / "gone").rename(model)
    again = ["build", str(spec), "--checkpoint", str(model), "--output", str(out)]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert (out / "weights" / "preprocessor_config.json").is_file()


def seeded_parts_are_named(tmp_path: Path, document: dict[str, Any], *question: str) -> None:
    """One part from a checkpoint: the others are noise, and their names are told."""
    spec, model, out = tmp_path / "spec.yaml", str(tmp_path / "model"), str(tmp_path / "part")
    part = ("--set", f"encoder.weights={model}")
    words = ("--tokenizer", model, *question, "--max-new-tokens", "1")
    told = "no weights were given for these parts: adapter, language, head; theirs are seeded"
    assert CliRunner().invoke(app, ["build", str(spec), *part, "--output", out]).exit_code == 0
    for run in (["run", str(spec), *part, *words], ["run", out, *words]):
        done = CliRunner().invoke(app, run)
        assert done.exit_code == 0, done.output
        assert told in done.stderr
        document = json.loads(CliRunner().invoke(app, [*run, "--json"]).stdout)
        assert document["seeded"] is False
        assert document["seeded_parts"] == ["adapter", "language", "head"]


@pytest.mark.parametrize("language", ["opt", "t5"])
def test_blip2(language: str, tmp_path: Path) -> None:
    file = (opt if language == "opt" else t5)(["<image>"])
    image_token = file.token_to_id("<image>")
    texts: dict[str, Any] = {
        "opt": OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            eos_token_id=1,
            bos_token_id=1,
            pad_token_id=0,
        ),
        "t5": T5Config(
            vocab_size=VOCABULARY,
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        ),
    }
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=Blip2VisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                image_size=32,
                patch_size=8,
            ),
            qformer_config=Blip2QFormerConfig(
                hidden_size=48,
                intermediate_size=80,
                num_hidden_layers=2,
                num_attention_heads=4,
                vocab_size=20,
            ),
            text_config=texts[language],
            num_query_tokens=5,
            image_token_index=image_token,
        )
    )
    if language == "t5":
        # The reference ties the head that it makes, but keeps one that a checkpoint brings.
        head = torch.nn.Parameter(torch.empty(VOCABULARY, 64))
        model.language_model.lm_head.weight = head
    pictures = BlipImageProcessorPil(size=CROP)
    prompt = "Question: how many windows does the house have? Answer:"
    picture = photo(tmp_path / "photo.png")
    reference = Blip2Processor(pictures, words(file), num_query_tokens=5)
    inputs = reference(images=[Image.open(picture)], text=prompt, return_tensors="pt")
    expected = saved(model, tmp_path / "model", file, inputs, pictures)
    decoder = {
        "norm": "layer",
        "norm_eps": 1e-5,
        "activation": "relu",
        "gated": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "positions": {"kind": "learned", "offset": 2},
        "tied_head": True,
        "context": 128,
    }
    encoder_decoder = {"kind": "encoder_decoder", "head_dim": 16}
    document = {
        "encoder": EVA,
        "adapter": QFORMER,
        "fusion": {"point": "mid", "kind": "query_prefix", "token": image_token},
        "language": {
            "width": 64,
            "layers": 2,
            "heads": 4,
            "hidden": 96,
            "vocabulary": VOCABULARY,
            **(decoder if language == "opt" else encoder_decoder),
        },
        "token_budget": {"images": 1, "text": 64},
    }
    answer = vlmc_run(tmp_path, document, "--image", str(picture), "--prompt", prompt)
    assert_same(answer, expected, file)


def test_idefics_with_several_images(tmp_path: Path) -> None:
    file = llama(["<pad>", "<fake_token_around_image>", "<image>"])
    vocabulary = file.token_to_id("<fake_token_around_image>")
    model = IdeficsForVisionText2Text(
        IdeficsConfig(
            vision_config={
                "embed_dim": 32,
                "image_size": 32,
                "patch_size": 8,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
            perceiver_config={
                "use_resampler": True,
                "resampler_n_latents": 5,
                "resampler_depth": 2,
                "resampler_n_heads": 2,
                "resampler_head_dim": 12,
                "qk_layer_norms_perceiver": True,
            },
            vocab_size=vocabulary,
            additional_vocab_size=2,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            cross_layer_interval=2,
            qk_layer_norms=True,
            use_resampler=True,
            eos_token_id=2,
            bos_token_id=1,
            pad_token_id=0,
        )
    )
    pictures = IdeficsImageProcessorPil(image_size=32)
    first, second = photo(tmp_path / "one.png"), tmp_path / "two.png"
    Image.open(first).rotate(90, expand=True).save(second)
    parts = ["User: the", Image.open(first), "house", Image.open(second), Image.open(first), "is"]
    reference = IdeficsProcessor(pictures, words(file), image_size=32)
    inputs = reference(text=parts, return_tensors="pt")
    expected = saved(model, tmp_path / "model", file, inputs, pictures)
    document = {
        "encoder": {
            **VIT,
            "layers": 2,
            "hidden": 48,
            "activation": "gelu",
            "features": {"layer": -1},
        },
        "adapter": {
            "kind": "perceiver_resampler",
            "queries": 5,
            "layers": 2,
            "width": 32,
            "heads": 2,
            "head_dim": 12,
            "activation": "relu",
            "qk_norm": "layer",
            "final_norm": True,
        },
        "fusion": {
            "kind": "gated_cross_attention",
            "every": 2,
            "hidden": 96,
            "norm": "rms",
            "norm_eps": 1e-6,
            "activation": "silu",
            "gated": True,
            "qk_norm": "rms",
            "visual_projection": False,
        },
        "language": {
            "width": 64,
            "layers": 4,
            "heads": 4,
            "hidden": 96,
            "vocabulary": vocabulary,
            "added_vocabulary": 2,
            "context": 2048,
            "norm_eps": 1e-6,
        },
        "token_budget": {"images": 3, "text": 128},
    }
    prompt = "User: the<image>house<image><image>is"
    images = [f for path in (first, second, first) for f in ("--image", str(path))]
    answer = vlmc_run(tmp_path, document, *images, "--prompt", prompt)
    assert_same(answer, expected, file)


def test_visualbert_chooses_the_same_answers(tmp_path: Path) -> None:
    file = bert()
    names = {index: f"answer {index}" for index in range(13)}
    config = VisualBertConfig(
        vocab_size=11,
        hidden_size=64,
        visual_embedding_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=13,
        id2label=names,
        hidden_act="gelu",
    )
    model = VisualBertForQuestionAnswering(config)
    randomise(model)
    model.save_pretrained(tmp_path / "model")
    save(file, tmp_path / "model")
    features = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    save_file({"features": features}, tmp_path / "features.safetensors")
    ids = torch.tensor([file.encode("is the house red").ids])
    with torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            visual_embeds=features[None],
            visual_attention_mask=torch.ones(1, 5, dtype=torch.long),
        ).logits
    expected = logits[0].softmax(-1).topk(5)
    document = {
        "encoder": {"kind": "regions", "count": 6, "width": 24},
        "adapter": "linear",
        "fusion": {"point": "early", "kind": "single_stream"},
        "language": {
            "kind": "encoder",
            "width": 64,
            "layers": 2,
            "heads": 4,
            "hidden": 96,
            "vocabulary": 11,
        },
        "head": {"kind": "classify", "classes": 13},
        "token_budget": {"images": 1, "text": 64},
    }
    regions = str(tmp_path / "features.safetensors")
    answer = vlmc_run(tmp_path, document, "--features", regions, "--prompt", "is the house red")
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == expected.indices.tolist()
    assert [choice["label"] for choice in choices] == [names[i] for i in expected.indices.tolist()]
    assert [c["probability"] for c in choices] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert answer["text"] == choices[0]["label"]
    command = ["run", str(tmp_path / "spec.yaml"), "--checkpoint", str(tmp_path / "model")]
    picture = str(photo(tmp_path / "photo.png"))
    done = CliRunner().invoke(app, [*command, "--image", picture, "--prompt", "is it red"])
    assert done.exit_code == 2
    assert "sees no pixels: it takes the features of up to 6 regions" in done.stderr
