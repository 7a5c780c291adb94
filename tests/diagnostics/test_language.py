"""The language holds every published system: what this release cannot build is answered as planned,
never as a misspelt word."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmc.components.catalog import kinds
from vlmc.diagnostics import SpecError
from vlmc.resolver import check, flow
from vlmc.spec import load, presets
from vlmc.spec.draft import HEADINGS, NAME
from vlmc.spec.merge import COMPONENTS
from vlmc.spec.problems import planned

ENCODER = "encoder: clip-vit-l-14-336"
LANGUAGE = "language: vicuna-7b-v1.5"

EXCERPTS = {
    "llava-1.0": "encoder: clip-vit-l-14-336\nadapter: {kind: linear}",
    "llava-1.5": """
encoder: {preset: clip-vit-l-14-336, features: {layer: -2, drop_cls: true}}
adapter: {kind: mlp, layers: 2, activation: gelu}
fusion: {point: late, kind: placeholder}""",
    "yi-vl": "adapter: {kind: mlp, norm: layernorm}",
    "identity": "adapter: identity\nlanguage: {preset: vicuna-7b-v1.5, width: 1024}",
    "prefix": "adapter: mlp\nfusion: prefix",
    "suffix": "adapter: mlp\nfusion: suffix",
    "interleave": "adapter: mlp\nfusion: {point: late, kind: interleave}",
    "llava-next": """
encoder: {preset: clip-vit-l-14-336, tiling: {kind: anyres, grids: [[1,2],[2,1],[2,2]],
          overview: true, newline: true, unpad: true}}
adapter: mlp""",
    "llava-uhd": """
encoder: {preset: clip-vit-l-14-336, tiling: {kind: uhd, max_slices: 6, schema_tokens: true}}
adapter: {kind: cross_attention_pool, queries: 64, positions: sincos_2d}""",
    "internvl": "adapter: {kind: pixel_shuffle_mlp, ratio: 0.5}",
    "deepseek-vl": """
encoder: {kind: hybrid, high: {preset: sam-b-1024}, low: {preset: siglip-l-16-384}}
adapter: mlp""",
    "deepseek-vl low": "encoder: siglip-l-16-384\nadapter: mlp",
    "wico": "adapter: {kind: window_concat, window: 2}",
    "qwen-vl": "adapter: {kind: cross_attention_pool, queries: 256, positions: sincos_2d}",
    "qwen2-vl": """
encoder: {preset: qwen2-vl-vit, resolution: {kind: native, min_tokens: 4, max_tokens: 16384}}
adapter: {kind: patch_merger, window: 2}
language: {preset: qwen2-7b, positions: {kind: mrope, sections: [16, 24, 24]}}""",
    "mrope": """
adapter: mlp
language: {preset: vicuna-7b-v1.5, positions: {kind: mrope, sections: [16, 24, 24]}}""",
    "native": """
encoder: {preset: clip-vit-l-14-336, resolution: {kind: native, min_tokens: 4, max_tokens: 16}}
adapter: mlp""",
    "blip-2 opt": """
adapter: {kind: qformer, queries: 32, layers: 12, cross_attention_every: 2}
fusion: {point: mid, kind: query_prefix}
language: opt-2.7b""",
    "blip-2 flan-t5": """
adapter: {kind: qformer, queries: 32, layers: 12, cross_attention_every: 2}
fusion: {point: mid, kind: query_prefix}
language: flan-t5-xl""",
    "flamingo": """
encoder: {preset: nfnet-f6, frames: {train: 8, serve: 30}, frozen: true}
adapter: {kind: perceiver_resampler, queries: 64, layers: 6}
fusion: {point: mid, kind: gated_cross_attention, every: 7, gate: tanh, attend: last_image}
language: {preset: chinchilla-70b, frozen: true}
token_budget: {images: 5, text: 2048}
target: {hardware: a100-80gb, count: 16, precision: bf16,
         workload: {mode: serve, batch: 8, prompt: 512, generate: 128}}""",
    "visualbert": """
encoder: {kind: regions, count: 36, width: 2048, boxes: true}
adapter: linear
fusion: {point: early, kind: single_stream}
language: bert-base-uncased
head: {kind: classify, classes: 3129}""",
    "vilbert": "adapter: mlp\nfusion: {point: early, kind: co_attention, bridges: 6}",
    "beit-3": """
adapter: mlp
fusion: {point: early, kind: multiway, experts: [vision, language], vl_layers: 3}""",
    "chameleon": """
encoder: {kind: vq, codebook: 8192, tokens: 1024}
fusion: {point: early, kind: shared_vocabulary}""",
    "pix2seq": """
adapter: mlp
language: {kind: decoder, layers: 6, cross_attention: true, width: 512, heads: 8, hidden: 2048,
           vocabulary: 3000}
head: {kind: sequence, vocabulary: {coordinates: 1000, classes: 80, text: bpe}}""",
    "mm-interleaved": """
adapter: mlp
fusion: {point: mid, kind: deformable_cross_attention, every: 4, scales: 3}""",
    "arr-coc": """
adapter: mlp
select: {kind: relevance, ways: [propositional, perspectival, participatory],
         budget: {base: 200, min: 64, max: 400}, explore: 0.25}""",
    "pools": """
adapter: mlp
target:
  pools: {vision: {hardware: t4, count: 2}, language: {hardware: a100-80gb, count: 4}}
  precision: {default: bf16, encoder: fp16, language: int4, head: fp32}""",
    "stages": """
adapter: mlp
training:
  stages:
    - {name: align, train: [adapter], objective: next_token, lr: 1e-3, batch: 256, epochs: 1}
    - {name: instruct, train: [adapter, language], objective: next_token, lr: 2e-5, batch: 128,
       epochs: 3}""",
    "graphs": "adapter: mlp\nartifacts: [model, onnx, aoti, compile]",
    "artifacts": "adapter: mlp\nartifacts: [model, onnx, aoti, plan, triton, kubernetes, kubeflow]",
    "auto queries": "adapter: {kind: qformer, queries: auto}",
    "auto image size": "encoder: {preset: clip-vit-l-14-336, image_size: auto}\nadapter: mlp",
    "auto images and text": "adapter: mlp\ntoken_budget: {images: auto, text: auto}",
    "auto context": "adapter: mlp\nlanguage: {preset: vicuna-7b-v1.5, context: auto}",
    "auto devices": """
adapter: mlp
target: {hardware: a100-80gb, count: auto, workload: {batch: auto}}""",
    "auto degrees": """
adapter: mlp
target: {hardware: a100-80gb, parallel: {tensor: auto, pipeline: auto, data: auto}}""",
}
"""An excerpt of each system; the sections that it leaves out are added."""

SOUND = {
    "llava-1.0", "llava-1.5", "yi-vl", "identity", "prefix", "blip-2 opt", "blip-2 flan-t5",
    "flamingo", "visualbert", "stages", "graphs", "auto degrees",
    "auto devices", "auto images and text",
}  # fmt: skip
"""The excerpts that this release builds."""


def codes(text: str, folder: Path) -> dict[str, str]:
    """Every code that a design is answered with, and the message of one of them."""
    path = folder / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        draft = load(path)
    except SpecError as error:
        return {d.code: d.message for d in error.diagnostics}
    return {d.code: d.message for d in draft.diagnostics(check(flow(draft.sections)))}


@pytest.mark.parametrize("name", EXCERPTS)
def test_an_excerpt_is_sound_or_planned(name: str, tmp_path: Path) -> None:
    text = EXCERPTS[name].strip() + "\n"
    for key, line in (("encoder:", ENCODER), ("language:", LANGUAGE)):
        if not text.startswith(key) and f"\n{key}" not in text:
            text += line + "\n"
    found = codes(text, tmp_path)
    assert set(found) == (set() if name in SOUND else {"VLMC019"}), found


def test_no_planned_word_is_built_already() -> None:
    """A word that is built leaves planned.yaml."""
    for role, words in planned()["kinds"].items():
        assert not set(words) & set(kinds(role))
    for role, words in planned()["presets"].items():
        assert not set(words) & set(presets.names(role))
    for key in planned()["keys"]:
        section, *rest = key.split(".")
        if section in COMPONENTS:
            built = {name for entry in kinds(section).values() for name in entry.spec.model_fields}
            assert rest[0] not in built or len(rest) > 1
        else:
            assert rest or section not in HEADINGS


@pytest.mark.parametrize(
    ("line", "hardware"),
    [("target: t4", "t4"), ("target: {hardware: t4}", "t4")],
)
def test_one_word_stands_for_a_target(line: str, hardware: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"{ENCODER}\nadapter: mlp\n{LANGUAGE}\n{line}\n")
    draft = load(path)
    assert draft.sections["target"].hardware == hardware


@pytest.mark.parametrize("stem", ["my design", "é", "..", "-x", "a" * 150, "ok-1.5"])
def test_a_design_is_called_after_its_file(stem: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.yaml"
    path.write_text(f"{ENCODER}\nadapter: mlp\n{LANGUAGE}\n")
    draft = load(path)
    assert draft.problems == []
    assert NAME.match(draft.sections["name"])
    if NAME.match(stem):
        assert draft.sections["name"] == stem


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a" * 101, "a b", '"a\\n"'])
def test_a_name_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
    quoted = name or '""'
    text = f"name: {quoted}\n{ENCODER}\nadapter: mlp\n{LANGUAGE}\n"
    assert set(codes(text, tmp_path)) == {"VLMC012"}
