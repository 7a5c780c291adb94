"""A build under the names that transformers.js and optimum read, for LLaVA's family.

The files, and what the client takes for granted: `models/llava` and `models/session.js` of
transformers.js 4.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vlmc.diagnostics import UsageError
from vlmc.emit.layout.graphs import renamed
from vlmc.emit.layout.llava import image_config, model_config, processor_config
from vlmc.emit.layout.words import Json, words
from vlmc.ir import Arch
from vlmc.runtime.byte_tokenizer import ARCHITECTURES, byte_tokenizer
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.processor import ImageProcessor, from_checkpoint, from_spec
from vlmc.runtime.tokenizer import Tokenizer, load_tokenizer
from vlmc.spec.document import ModelSpec

GRAPHS = {
    "vision": "vision_encoder",
    "embed": "embed_tokens",
    "decoder": "decoder_model_merged",
}
"""Our graphs by the client's names."""

VARIANTS: Mapping[Literal["int8", "int4"], tuple[str, ...]] = {
    "int8": ("_int8", "_quantized"),
    "int4": ("_q4",),
}
"""Endings of the client's names for a quantised graph: its dtypes int8, q8 and q4."""


def check(arch: Arch) -> None:
    """Raises UsageError where the client has no such kind of model."""
    encoder, fusion = arch.node("encoder"), arch.node("fusion")
    if arch.serving == "sequence" and fusion.kind == "placeholder" and encoder.kind == "vit":
        if encoder.arguments["frames"] == 1:
            return
        why = "its encoder sees videos"
    elif arch.serving != "sequence" or fusion.kind != "placeholder":
        why = f"its fusion is {fusion.kind}"
    else:
        why = f"its encoder is {encoder.kind}"
    raise UsageError(
        f"--layout transformers.js: {arch.name} has no class there, since {why}; it serves designs "
        f"like LLaVA: a vit encoder of still images, fusion placeholder, a decoder. The graphs in "
        f"onnx/ run in any ONNX Runtime, and `vlmc run --engine onnx` runs them"
    )


def transformers_js(
    arch: Arch, spec: ModelSpec, build: Path, folder: Path, own: Path | None = None
) -> None:
    """Fills `folder` from a build with weights/ and onnx/: graphs in onnx/ beside the weights that
    they read, which are linked, and the JSON files that tell a client how to feed them. `spec` is
    the twin's where `arch.mini`; `own` is where a user's own tokenizer may lie: None is `build`.

    Raises UsageError where the design or its preprocessing is beyond the client, or there is no
    tokenizer.
    """
    check(arch)
    design = describe(spec, arch)
    processor = _processor(design, build / "weights")
    tokenizer = _tokenizer(design, build, own or build)
    if processor.pad:
        raise UsageError(
            "--layout transformers.js: it cannot pad a picture before it resizes it; set "
            "encoder.preprocess.resize to shortest_edge or stretch"
        )
    image_token = arch.node("fusion").arguments["image_token"]
    assert isinstance(image_token, int)
    text = words(tokenizer, image_token, build / "weights")
    files: dict[str, Json] = {
        "generation_config.json": dict(text.ids),
        "preprocessor_config.json": image_config(processor),
        "processor_config.json": processor_config(arch, text.image_word),
        **text.files,
    }
    named(arch, build, folder, text.ids)
    for name, content in files.items():
        _write(folder / name, content)


def named(arch: Arch, build: Path, folder: Path, ids: Mapping[str, Any]) -> None:
    """Fills `folder` as far as numbers go: the graphs of a build and config.json, which names the
    placeholder's token beside special tokens' `ids`."""
    source, target = build / "onnx", folder / "onnx"
    for ours, theirs in GRAPHS.items():
        renamed(source / f"{ours}.onnx", target / f"{theirs}.onnx")
        for variant, endings in VARIANTS.items():
            if not (source / f"decoder.{variant}.onnx").is_file():
                continue
            # Where a graph has no such variant its own stands in, so that one dtype fits all.
            own = source / f"{ours}.{variant}.onnx"
            for ending in endings:
                chosen = own if own.is_file() else source / f"{ours}.onnx"
                renamed(chosen, target / f"{theirs}{ending}.onnx")
    _write(folder / "config.json", model_config(arch, ids))


def _write(path: Path, content: Json) -> None:
    written = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(written, encoding="utf-8")


def _processor(design: Design, folder: Path) -> ImageProcessor:
    """How pictures are read: as the checkpoint says, else the spec."""
    assert design.preprocessing is not None
    assert design.image_size is not None
    return from_checkpoint(folder, from_spec(design.preprocessing, design.image_size))


def _tokenizer(design: Design, build: Path, own: Path) -> Tokenizer:
    """The tokenizer that a user gave, else that of a build, bytes for a twin that has none."""
    for folder in (own, build / "weights"):
        if (folder / "tokenizer.json").is_file():
            return load_tokenizer(folder, checkpoint=build / "weights")
    if design.mini:
        return byte_tokenizer(ARCHITECTURES[design.serving], design.vocabulary)
    raise UsageError(
        f"--layout transformers.js: {design.name} has no tokenizer in {own}; put the published "
        "tokenizer.json there, after a build without --layout where there is none yet"
    )
