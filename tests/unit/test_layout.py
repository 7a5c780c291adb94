"""What a client of LLaVA is told of a build: counts, configurations, tokenizer files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizer_files
from PIL import Image
from transformers import AutoConfig, AutoProcessor, LlavaConfig

from vlmc.diagnostics import UsageError
from vlmc.emit.layout.llava import image_config, model_config, processor_config
from vlmc.emit.layout.transformers_js import check
from vlmc.emit.layout.words import Words, words
from vlmc.ir import Arch
from vlmc.pipeline import load_spec, resolve
from vlmc.runtime.byte_tokenizer import byte_tokenizer
from vlmc.runtime.design import Preprocessing
from vlmc.runtime.processor import RESAMPLING, from_checkpoint, from_spec
from vlmc.runtime.tokenizer import load_tokenizer


def arch_of(root: Path, *changes: str, spec: str = "llava-1.5", mini: bool = True) -> Arch:
    return resolve(load_spec(root / f"specs/{spec}.yaml", changes), mini=mini)


def put(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def client(folder: Path, arch: Arch, text: Words, steps: Preprocessing, side: int) -> Any:
    """transformers' own processor of the files."""
    files = {
        "config.json": model_config(arch, text.ids),
        "preprocessor_config.json": image_config(from_spec(steps, side)),
        "processor_config.json": processor_config(arch, text.image_word),
        **text.files,
    }
    return AutoProcessor.from_pretrained(put(folder, files))


STEPS = Preprocessing(
    resize="shortest_edge", interpolation="bicubic", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)


@pytest.mark.parametrize("drop", [True, False])
def test_placeholders_of_an_image(root: Path, tmp_path: Path, drop: bool) -> None:
    """transformers and transformers.js (rows * columns + additional) count what our model makes."""
    arch = arch_of(root, f"encoder.features.drop_cls={str(drop).lower()}")
    token = arch.node("fusion").arguments["image_token"]
    assert isinstance(token, int)
    text = words(byte_tokenizer("decoder", 320), token, tmp_path)
    processor = client(tmp_path, arch, text, STEPS, 32)
    picture = Image.fromarray(np.zeros((40, 50, 3), np.uint8))
    ids = processor(images=picture, text="A<image>B", return_tensors="np")["input_ids"][0].tolist()
    assert ids == [257, 65, *[token] * (16 if drop else 17), 66]
    said = processor_config(arch, "<image>")
    assert (32 // said["patch_size"]) ** 2 + said["num_additional_image_tokens"] == len(ids) - 3


def test_the_configuration_is_llavas(root: Path, tmp_path: Path) -> None:
    arch = arch_of(root, mini=False)
    put(tmp_path, {"config.json": model_config(arch, {"eos_token_id": 2})})
    found = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(found, LlavaConfig)
    own = LlavaConfig(vision_config=found.vision_config, text_config=found.text_config)
    assert (found.image_token_index, found.vision_feature_layer) == (32000, -2)
    assert found.vision_feature_select_strategy == own.vision_feature_select_strategy == "default"
    text, vision = found.text_config, found.vision_config
    assert (text.model_type, text.num_hidden_layers, text.hidden_size) == ("llama", 32, 4096)
    assert (text.intermediate_size, text.vocab_size, text.eos_token_id) == (11008, 32064, 2)
    assert (vision.model_type, vision.num_hidden_layers) == ("clip_vision_model", 24)
    assert (vision.image_size, vision.patch_size, vision.hidden_act) == (336, 14, "quick_gelu")


@pytest.mark.parametrize("resize", ["shortest_edge", "stretch"])
@pytest.mark.parametrize("interpolation", RESAMPLING)
def test_pictures_are_read_as_the_design_says(
    tmp_path: Path, resize: Any, interpolation: Any
) -> None:
    processor = from_spec(replace(STEPS, resize=resize, interpolation=interpolation), 32)
    put(tmp_path, {"preprocessor_config.json": image_config(processor)})
    other = from_spec(replace(STEPS, mean=(0, 0, 0)), 64)
    assert from_checkpoint(tmp_path, other) == processor


FAMILIES = {
    "bytes": lambda _: byte_tokenizer("decoder", 320),
    "llama": lambda folder: load_tokenizer(
        tokenizer_files.save(tokenizer_files.llama(["<image>"]), folder)
    ),
    "llama without the placeholder": lambda folder: load_tokenizer(
        tokenizer_files.save(tokenizer_files.llama_without_legacy(), folder)
    ),
    "opt": lambda folder: load_tokenizer(
        tokenizer_files.save(tokenizer_files.opt(["<image>"]), folder)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_reads_as_ours_with_what_surrounds_a_text(family: str, tmp_path: Path) -> None:
    tokenizer = FAMILIES[family](tmp_path)
    token = tokenizer.id("<image>") or 700
    made = words(tokenizer, token, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    again = load_tokenizer(put(out, {**made.files, "generation_config.json": dict(made.ids)}))
    text = "how many windows?"
    assert again.file.encode(text).ids == [*tokenizer.start, *tokenizer.encode(text)]
    assert again.encode("a<image>").count(token) == 1
    assert again.file.token_to_id("<image>") == token
    assert (again.start, again.end, again.stops) == (
        tokenizer.start,
        tokenizer.end,
        tokenizer.stops,
    )


def test_a_placeholder_of_another_number_is_refused(tmp_path: Path) -> None:
    folder = tokenizer_files.save(tokenizer_files.llama(["<image>"]), tmp_path)
    tokenizer = load_tokenizer(folder)
    with pytest.raises(UsageError, match=f"set fusion.token to {tokenizer.id('<image>')}"):
        words(tokenizer, 5000, tmp_path)


def test_the_chat_template_stands_where_the_client_looks(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    made = words(byte_tokenizer("decoder", 320), 319, tmp_path)
    assert made.files["tokenizer_config.json"]["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("spec", ["flamingo", "blip2", "blip2-flan-t5", "visualbert"])
def test_what_the_client_has_no_class_for_is_refused(root: Path, spec: str) -> None:
    with pytest.raises(UsageError, match="it serves designs like LLaVA"):
        check(arch_of(root, spec=spec))
    check(arch_of(root))
