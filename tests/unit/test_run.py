"""`vlmc run` as a user calls it: every spec's twin on a real picture, and every mistake."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file
from tokenizer_files import llama, save
from typer.testing import CliRunner

import vlmc
from vlmc.commands import app
from vlmc.runtime import placement
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.session import Session

ROOT = Path(__file__).parents[2]
SPECS = sorted((ROOT / "specs").glob("*.yaml"))
LLAVA = ROOT / "specs" / "llava-1.5.yaml"
BLIP2 = ROOT / "specs" / "blip2.yaml"
VISUALBERT = ROOT / "specs" / "visualbert.yaml"
PICTURE = ROOT / "docs" / "images" / "shapes.png"


def run(*arguments: str | Path, prompt: str | None = "What is in the picture?") -> Result:
    words = ["run", *map(str, arguments)]
    return CliRunner().invoke(app, words if prompt is None else [*words, "--prompt", prompt])


def answer(*arguments: str | Path, **more: Any) -> dict[str, Any]:
    done = run(*arguments, "--json", **more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def fails(code: int, *arguments: str | Path, **more: Any) -> str:
    """What a failing command says, on stderr and without a traceback."""
    done = run(*arguments, **more)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(("error: ", "  "))
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_picture_is_what_its_script_draws() -> None:
    script = ROOT / "docs" / "images" / "draw.py"
    found = importlib.util.spec_from_file_location("draw", script)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with Image.open(PICTURE) as picture:
        assert picture.convert("RGB").tobytes() == module.draw().tobytes()
    assert PICTURE.stat().st_size < 20_000


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_the_twin_of_every_spec_answers(spec: Path) -> None:
    said = answer(spec, "--mini", "--image", PICTURE, "--max-new-tokens", "5")
    assert said["seeded"] is True
    assert said["prompt"]["images"] == 1
    assert len(said["tokens"]) == 5 or said["finish"] == "stop"
    assert any("seeded" in note for note in said["notes"])
    assert (
        answer(spec, "--mini", "--image", PICTURE, "--max-new-tokens", "5")["text"] == said["text"]
    )


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.stem)
def test_a_full_model_without_weights_is_refused(spec: Path) -> None:
    said = fails(2, spec, "--image", PICTURE)
    assert "--checkpoint DIR" in said
    assert "--mini" in said


def test_the_answer_goes_to_stdout_and_everything_else_to_stderr() -> None:
    done = run(LLAVA, "--mini", "--image", PICTURE, "--max-new-tokens", "8")
    assert done.exit_code == 0
    assert "note: the weights are seeded" in done.stderr
    assert "24 + 16 visual tokens in, 8 out" in done.stderr
    assert "note" not in done.stdout
    assert done.stdout.endswith("\n")


def test_nothing_that_steers_a_terminal_is_printed() -> None:
    options = ("--temperature", "3", "--max-new-tokens", "200", "--seed", "1")
    said = answer(LLAVA, "--mini", "--image", PICTURE, *options)["text"]
    assert any(steers(c) for c in said), "this draw has no control character: take another seed"
    shown = run(LLAVA, "--mini", "--image", PICTURE, *options).stdout
    assert not any(steers(c) for c in shown)


def steers(character: str) -> bool:
    return character not in "\n\t" and (ord(character) < 32 or ord(character) == 127)


def test_sampling_options_reach_the_model() -> None:
    base = (LLAVA, "--mini", "--image", PICTURE, "--max-new-tokens", "12")
    greedy = answer(*base)["tokens"]
    drawn = ("--temperature", "2", "--seed", "5")
    assert answer(*base, *drawn)["tokens"] == answer(*base, *drawn)["tokens"] != greedy
    assert answer(*base, *drawn)["tokens"] != answer(*base, "--temperature", "2")["tokens"]
    assert answer(*base, *drawn, "--top-k", "1")["tokens"] == greedy
    assert answer(*base, *drawn, "--top-p", "0.000001")["tokens"] == greedy
    assert "--top-p" in fails(2, *base, "--top-p", "0.5")
    assert "--max-new-tokens 0" in fails(2, *base[:4], "--max-new-tokens", "0")


def test_several_images_among_words() -> None:
    images = ("--image", PICTURE, "--image", PICTURE)
    said = answer(
        LLAVA,
        "--mini",
        *images,
        "--max-new-tokens",
        "2",
        "--set",
        "token_budget.images=2",
        prompt="A <image> and <image>: same?",
    )
    assert said["prompt"]["images"] == 2
    assert said["prompt"]["visual_tokens"] == 32
    message = fails(2, LLAVA, "--mini", *images[:2], prompt="<image> and <image>?")
    assert "2 <image> markers, but 1 image is given" in message


def test_overrides_change_the_design() -> None:
    said = answer(LLAVA, "--mini", "--image", PICTURE, "--set", "encoder.features.drop_cls=false")
    assert said["prompt"]["visual_tokens"] == 17
    done = run(LLAVA, "--mini", "--image", PICTURE, "--set", "language.heads=7")
    assert done.exit_code == 1
    assert "VLMC101" in done.stderr


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    twin = (LLAVA, "--mini")
    (tmp_path / "text.png").write_text("no picture")
    assert "no such file" in fails(2, *twin, "--image", tmp_path / "absent.png")
    assert "not an image" in fails(2, *twin, "--image", tmp_path / "text.png")
    assert "absent.yaml" in fails(2, tmp_path / "absent.yaml", "--mini")
    assert "give one of them" in fails(2, *twin, "--checkpoint", tmp_path)
    assert "cuda:1, mps" in fails(2, *twin, "--device", "gpu")
    assert "nothing can be computed" in fails(2, *twin, "--device", "meta")
    assert "no such file" in fails(2, *twin, "--tokenizer", tmp_path / "absent")
    assert "--image PATH" in fails(2, *twin, "--features", tmp_path / "a.safetensors")
    assert "--tokenizer PATH" in fails(2, LLAVA, "--checkpoint", tmp_path)
    assert run(*twin, "--dtype", "int4").exit_code == 2
    assert run(*twin, prompt=None).exit_code == 2
    bad = json.loads(run(*twin, "--image", tmp_path / "absent.png", "--json").stdout)
    assert bad["exit"] == 2
    assert "no such file" in bad["error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that is not there")
def test_a_device_that_is_not_there() -> None:
    assert "--device cuda cannot be used here" in fails(3, LLAVA, "--mini", "--device", "cuda")


def test_a_model_that_does_not_fit_is_said_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda: 8 * 10**9)
    save(llama(), tmp_path)
    said = fails(3, LLAVA, "--checkpoint", tmp_path, "--image", PICTURE)
    assert "x 4 bytes = 28.3 GB" in said
    assert "8.0 GB free" in said
    assert "--mini" in said
    half = fails(3, LLAVA, "--checkpoint", tmp_path, "--dtype", "bf16")
    assert "x 2 bytes = 14.1 GB" in half


def test_a_real_tokenizer_needs_a_vocabulary_that_holds_it(tmp_path: Path) -> None:
    words = save(llama(), tmp_path)
    said = answer(LLAVA, "--mini", "--image", PICTURE, "--tokenizer", words)
    assert said["prompt"]["text_tokens"] != 24
    wide = ("--set", "language.vocabulary=200", "--set", "fusion.token=199")
    message = fails(2, LLAVA, "--mini", *wide, "--tokenizer", words / "tokenizer.json")
    assert "has 200 words (0 to 199)" in message
    assert "256 bytes" in fails(2, LLAVA, "--mini", *wide)


def test_half_precision(tmp_path: Path) -> None:
    for spec in (LLAVA, BLIP2):
        said = answer(spec, "--mini", "--image", PICTURE, "--dtype", "bf16")
        assert said["tokens"]
    twin = vlmc.load(LLAVA, mini=True, dtype="bf16")
    assert {p.dtype for p in model_of(twin).parameters()} == {torch.bfloat16}


def model_of(session: Session) -> Any:
    assert isinstance(session.engine, EagerEngine)
    return session.engine.model


def test_the_builds_of_twins_run_too(tmp_path: Path) -> None:
    folder = tmp_path / "twin"
    vlmc.build(LLAVA, folder, mini=True, artifacts=["model"])
    built = answer(folder, "--image", PICTURE)
    direct = answer(LLAVA, "--mini", "--image", PICTURE)
    assert built["tokens"]
    for key in ("name", "seeded", "tokens", "text", "prompt"):
        assert built[key] == direct[key], key
    assert answer(LLAVA, "--mini", "--image", PICTURE, "--seed", "9")["tokens"] == built["tokens"]


def test_a_build_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    vlmc.build(LLAVA, folder)
    assert "has no weights here" in fails(2, folder, "--image", PICTURE)
    assert answer(folder, "--mini", "--image", PICTURE)["seeded"]


def classes(*arguments: str | Path, **more: Any) -> list[dict[str, Any]]:
    return answer(VISUALBERT, "--mini", *arguments, **more)["choices"]


def test_a_classifier_answers_with_probabilities(tmp_path: Path) -> None:
    best = classes("--image", PICTURE)
    assert [choice["of"] for choice in best] == ["class"] * 5
    shares = [choice["probability"] for choice in best]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
    done = run(VISUALBERT, "--mini", "--image", PICTURE)
    assert done.stdout.splitlines()[0] == best[0]["label"]
    assert f"{shares[1]:.2%}  {best[1]['label']}" in done.stdout
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    assert classes("--image", tmp_path / "red.png") != best
    assert "nothing to sample" in fails(2, VISUALBERT, "--mini", "--temperature", "1")


def test_region_features_in_place_of_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"features": torch.randn(6, 48), "boxes": torch.zeros(6, 4)}, path)
    assert classes("--features", path) != classes()
    both = fails(2, VISUALBERT, "--mini", "--features", path, "--image", PICTURE)
    assert "give one of them" in both


def test_masked_words_are_filled() -> None:
    design = ("--set", "head={kind: masked_lm}", "--image", PICTURE)
    said = answer(VISUALBERT, "--mini", *design, prompt="The [MASK] is [MASK].")
    assert [choice["of"] for choice in said["choices"]] == [
        *["mask 1"] * 5,
        *["mask 2"] * 5,
        "pair",
    ]
    assert "[MASK]" not in said["text"]
    assert said["text"].startswith("The ")
    message = fails(2, VISUALBERT, "--mini", *design, prompt="Nothing masked.")
    assert "write [MASK]" in message


def test_the_likeliest_word_stands_in_the_place_of_each_mask() -> None:
    twin = vlmc.load(VISUALBERT, mini=True, overrides=["head={kind: masked_lm}"])
    model_of(twin).get_parameter("head.bias")[ord("X")] = 100.0
    said = twin.generate("a [MASK] b [MASK].", [PICTURE])
    assert said.text == "a X b X."
    assert said.choices[0].index == ord("X")
    assert said.choices[0].probability > 0.99


def test_stdout_that_holds_ascii_only() -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "run", str(LLAVA), "--mini", "--image"]
    done = subprocess.run(
        [*command, str(PICTURE), "--prompt", "What?", "--temperature", "2"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    done.stdout.decode("ascii")
