"""run.py of a build answers as a session does, in a process that has no vlmc."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmc import pipeline
from vlmc.builder.values import valued
from vlmc.builder.weights import save_weights
from vlmc.emit import catalog
from vlmc.emit.backends import run_py
from vlmc.emit.onnx import write
from vlmc.emit.options import Options
from vlmc.runtime.start import start

PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"
TOKENS = 12

# What a process that only deploys does not have.
NEVER = ("vlmc", "pydantic", "yaml", "transformers", "safetensors", "libcst", "typer", "onnx")
ABSENT = {"onnx": (*NEVER, "torch", "jinja2", "onnxscript"), "eager": (*NEVER, "onnxruntime")}

WITHOUT = """\
import sys


class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {absent} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
"""Makes packages absent, to whoever imports them or asks whether they are there."""


@dataclass
class Twin:
    """A build of a twin, a picture, and what a session says about it."""

    folder: Path
    picture: Path
    expected: list[int]

    def run(
        self, engine: str, *options: str, script: str | Path | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """run.py in a process without the packages that it should not need."""
        without = self.folder.parent / f"without-{engine}"
        without.mkdir(exist_ok=True)
        (without / "sitecustomize.py").write_text(WITHOUT.format(absent=ABSENT[engine]))
        command = [sys.executable, str(script or self.folder / "run.py"), "--engine", engine]
        command += ["--prompt", PROMPT, "--max-new-tokens", str(TOKENS), "--threads", "1", *options]
        environment = {**os.environ, "PYTHONPATH": str(without)}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=cwd, env=environment
        )

    def tokens(self, engine: str, picture: Path | None = None) -> list[int]:
        """What it says about a picture."""
        done = self.run(engine, "--json", "--image", str(picture or self.picture))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["tokens"]


def picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def built(root: Path, folder: Path, name: str) -> Twin:
    """The twin of a spec: its texts, seeded weights and ONNX graphs."""
    folder.mkdir()
    path = root / f"specs/{name}.yaml"
    build = pipeline.plan(path, folder, (), True)
    for text in catalog.texts(build):
        path_of = folder / text.path
        path_of.parent.mkdir(exist_ok=True)
        path_of.write_bytes(text.data)
    (folder / "manifest.json").write_text('{"artifacts": {"weights": {"source": "seed 0"}}}')
    (folder / "weights").mkdir()
    save_weights(valued(build.arch, seed=0), folder / "weights")
    write(build.arch, folder / "weights", folder / "onnx", options=Options())
    shown = picture(folder.parent / f"{name}.png", 0)
    session = start(pipeline.load_spec(path), mini=True)
    answer = session.generate(PROMPT, shown, max_new_tokens=TOKENS)
    return Twin(folder, shown, list(answer.tokens))


@pytest.fixture(scope="module")
def llava(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return built(root, tmp_path_factory.mktemp("llava") / "build", "llava-1.5")


@pytest.mark.parametrize("engine", ABSENT)
def test_the_same_tokens_as_a_session(llava: Twin, engine: str) -> None:
    assert len(llava.expected) == TOKENS
    assert llava.tokens(engine) == llava.expected


def test_weights_that_are_cut_short_are_named(llava: Twin) -> None:
    path = llava.folder / "weights" / "model.safetensors"
    whole = path.read_bytes()
    for size in (len(whole) // 2, 100):
        path.unlink()
        path.write_bytes(whole[:size])
        done = llava.run("eager", "--image", str(llava.picture))
        assert "model.safetensors: cannot be read" in done.stderr
        assert "Traceback" not in done.stderr
    path.write_bytes(whole)
    done = llava.run("eager", "--image", "")
    assert "an empty text is no path to a picture" in done.stderr


def test_another_picture_changes_them(llava: Twin) -> None:
    other = picture(llava.folder.parent / "other.png", 1)
    assert llava.tokens("onnx", other) != llava.expected


def test_from_its_own_folder_and_beside_folders_named_like_packages(llava: Twin) -> None:
    """onnx/ of a build, and what people put there, are no packages to it."""
    for name in ("numpy", "triton", "tokenizers"):
        (llava.folder / name).mkdir()
        (llava.folder / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    done = llava.run(
        "onnx", "--json", "--image", "../llava-1.5.png", script="run.py", cwd=llava.folder
    )
    for name in ("numpy", "triton", "tokenizers"):
        shutil.rmtree(llava.folder / name)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == llava.expected


def test_text_for_people(llava: Twin) -> None:
    done = llava.run("onnx", "--image", str(llava.picture), "--stop", "g")
    assert done.returncode == 0
    assert done.stdout.endswith("\n")
    assert "g" not in done.stdout
    assert "the answer is noise" in done.stderr
    assert "[32 + 16 visual tokens in" in done.stderr
    assert not any(ord(c) < 32 and c not in "\n\t" for c in done.stdout)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--engine", "aoti"), 2, "--artifacts"),
        (("--image", "absent.png"), 2, "absent.png: no such file"),
        (("--temperature", "-1"), 2, "--temperature -1.0"),
        (("--threads", "0"), 2, "--threads 0: 1 or more is expected"),
        (("--max-new-tokens", "many"), 2, "invalid int value: 'many'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    llava: Twin, options: tuple[str, ...], code: int, said: str
) -> None:
    done = llava.run("onnx", *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_not_there_is_named(llava: Twin) -> None:
    done = llava.run("onnx", "--engine", "eager", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"].endswith("needs the package torch: pip install torch")


def test_the_text_is_sound(root: Path, tmp_path: Path) -> None:
    """The same every time, as its formatter leaves it, and free of names that mean nothing."""
    build = pipeline.plan(root / "specs/llava-1.5.yaml", tmp_path, (), False)
    text = run_py.source(build.spec, build.arch)
    assert text == run_py.source(build.spec, build.arch)
    assert re.search(r"\b(import|from) vlmc", text) is None
    (tmp_path / "run.py").write_text(text)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "basic"}')
    checks = (
        ("ruff", "check", "--isolated", "--select", "F,E9,I", "run.py"),
        ("pyright", "--project", ".", "--pythonpath", sys.executable),
    )
    for command in checks:
        words = [sys.executable, "-m", *command]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
