"""transformers.js under Node answers about images from a local folder as the model itself does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizer_files
from PIL import Image

from vlmc.builder.values import valued
from vlmc.builder.weights import save_weights
from vlmc.emit.artifact import Graphs
from vlmc.emit.backends.layout import emit
from vlmc.emit.layout.transformers_js import transformers_js
from vlmc.emit.onnx import write
from vlmc.emit.options import Options
from vlmc.pipeline import load_spec, plan, resolve
from vlmc.runtime.start import start
from vlmc.runtime.tokenizer import load_tokenizer

JS = Path(__file__).parent.parent / "js"
PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"
TOKENS = 16
LEAST_NODE = (20, 9)
"""sharp, by which transformers.js reads pictures, needs it."""


@pytest.fixture(scope="module")
def client() -> Path:
    """The folder of the client, installed once for a lock file and a Python environment."""
    _need_node()
    files = sorted(path for path in JS.rglob("*.json") if "node_modules" not in path.parts)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    folder = Path(sys.prefix) / "share" / f"vlmc-js-{digest}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent)) / "js"
        shutil.copytree(JS, made, ignore=shutil.ignore_patterns("node_modules"))
        light = ("--ignore-scripts", "--no-audit", "--no-fund")
        done = subprocess.run(
            ["npm", "ci", *light], cwd=made, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        if not folder.exists():  # another worker may have been first
            os.rename(made, folder)
        shutil.rmtree(made.parent)
    shutil.copyfile(JS / "run.mjs", folder / "run.mjs")
    return folder


def _need_node() -> None:
    """Skips where the client cannot run; fails where the whole check is meant to run (CI)."""
    if shutil.which("npm") is not None and _node() >= LEAST_NODE:
        return
    lacking = "Node 20.9 or newer and npm are not installed"
    if os.environ.get("CI"):
        pytest.fail(f"{lacking}; .ci/run installs them")
    pytest.skip(lacking)


def _node() -> tuple[int, ...]:
    if shutil.which("node") is None:
        return (0,)
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in re.findall(r"\d+", said))


@dataclass
class Case:
    """A twin in the client's layout, its pictures, and our own answers about them."""

    folder: Path
    weights: Path
    pictures: list[Path]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def case(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    build = tmp_path_factory.mktemp("build")
    spec = load_spec(root / "specs/llava-1.5.yaml")
    arch = resolve(spec, mini=True)
    (build / "onnx").mkdir()
    (build / "weights").mkdir()
    save_weights(valued(arch, seed=0), build / "weights")
    options = Options(quantize="int8", max_error=1.0)
    write(arch, build / "weights", build / "onnx", options=options)
    folder = build / "layout"
    folder.mkdir()
    transformers_js(arch, spec.mini(), build, folder)
    # As large as the model's input: the client resizes pictures by an algorithm of its own.
    side = spec.mini().encoder.input_type().dims[-1]
    pictures: list[Path] = []
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
        pictures.append(build / f"{seed}.png")
        Image.fromarray(pixels).save(pictures[-1])
    session = start(spec, mini=True)
    asked = {"max_new_tokens": TOKENS}
    tokens = [list(session.generate(PROMPT, one, **asked).tokens) for one in pictures]
    assert [len(one) for one in tokens] == [TOKENS, TOKENS]
    assert tokens[0] != tokens[1]
    return Case(folder, build / "weights", pictures, tokens)


def asked(client: Path, case: Case, dtype: str) -> list[dict[str, Any]]:
    question = {
        "folder": str(case.folder),
        "dtype": dtype,
        "prompt": PROMPT,
        "images": [str(path) for path in case.pictures],
        "tokens": TOKENS,
    }
    command = ["node", "run.mjs", json.dumps(question)]
    done = subprocess.run(command, cwd=client, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_answers_are_our_own(client: Path, case: Case) -> None:
    found = asked(client, case, "fp32")
    assert [one["tokens"] for one in found] == case.tokens


@pytest.mark.parametrize("dtype", ["int8", "q8"])
def test_quantised_graphs_answer(client: Path, case: Case, dtype: str) -> None:
    """Nearly as the model does: the first token of each is the same."""
    found = asked(client, case, dtype)
    assert [len(one["tokens"]) for one in found] == [TOKENS, TOKENS]
    assert [one["tokens"][0] for one in found] == [tokens[0] for tokens in case.tokens]


def test_weights_are_there_once(case: Case) -> None:
    own = {path.stat().st_ino for path in case.weights.iterdir()}
    files = {path: path.stat() for path in (case.folder / "onnx").rglob("*") if path.is_file()}
    assert own <= {stat.st_ino for stat in files.values()}
    beside = sum(
        stat.st_size
        for path, stat in files.items()
        if stat.st_ino not in own and "int8" not in path.name and path.suffix == ".safetensors"
    )
    assert beside <= 0.02 * sum(path.stat().st_size for path in case.weights.iterdir())


def test_graphs_have_the_names_that_optimum_feeds(case: Case) -> None:
    """ONNX Runtime's sessions by file name, fed by name as optimum does it: prompt, then a step."""
    folder = case.folder / "onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    vision, embed, decoder = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
        for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    )
    pixels = np.zeros((1, *vision.get_inputs()[0].shape[1:]), np.float32)
    (features,) = vision.run(["image_features"], {"pixel_values": pixels})
    (words,) = embed.run(["inputs_embeds"], {"input_ids": np.array([[1, 2]])})
    x = np.concatenate((words, features), axis=1)
    names = [one.name for one in decoder.get_inputs()]
    past = {
        one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
        for one in decoder.get_inputs()
        if one.name.startswith("past_key_values.")
    }
    assert sorted(names) == sorted(["attention_mask", "inputs_embeds", *past])
    rows = {one.shape[0] for one in decoder.get_inputs()}
    assert rows == {"batch_size"}
    mask = np.ones(x.shape[:2], np.int64)
    outputs = [one.name for one in decoder.get_outputs()]
    found = dict(
        zip(
            outputs,
            decoder.run(None, {"inputs_embeds": x, "attention_mask": mask, **past}),
            strict=True,
        )
    )
    assert found["logits"].shape == (1, 1, 320)
    present = {name.replace("past_key_values", "present") for name in past}
    assert {*outputs} == {"logits", *present}
    assert found["present.0.key"].shape[2] == x.shape[1]


def test_the_tokenizer_that_a_user_put_into_the_build(
    root: Path, case: Case, tmp_path: Path
) -> None:
    """It lies in the build that stands, while the new one grows elsewhere."""
    tokenizer_files.save(tokenizer_files.llama(), tmp_path)
    options = Options(layout="transformers.js")
    this = plan(root / "specs/llava-1.5.yaml", tmp_path, (), True, options=options)
    artifact = emit(this)
    assert isinstance(artifact, Graphs)
    folder = case.folder.parent / artifact.path
    folder.mkdir()
    artifact.make(folder, {})
    words = "two windows"
    made, own = load_tokenizer(folder), load_tokenizer(tmp_path)
    assert made.encode(words) == own.encode(words)
    assert made.id("▁th") is not None, "no bytes"


@pytest.mark.parametrize(("ci", "ends"), [("1", pytest.fail), ("", pytest.skip)])
def test_without_node_the_whole_check_fails(
    monkeypatch: pytest.MonkeyPatch, ci: str, ends: Any
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ends.Exception, match="are not installed"):
        _need_node()
