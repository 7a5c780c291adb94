"""What commands refuse, and what they print for a user to paste."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import vlmc
from vlmc.commands import app
from vlmc.diagnostics import EnvironmentFault, UsageError

ROOT = Path(__file__).parents[2]
LLAVA = ROOT / "specs" / "llava-1.5.yaml"
VISUALBERT = ROOT / "specs" / "visualbert.yaml"
ASKED = ("--prompt", "What?")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: str | Path) -> str:
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return " ".join(done.output.split())


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(LLAVA.read_text().replace("schema: 1", "schema: 1\ncolour: red"))
    return path


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [10**23, 2**63, -1])
@pytest.mark.parametrize("words", [("run", LLAVA, "--mini", *ASKED), ("build", LLAVA, "--mini")])
def test_a_seed_that_no_generator_takes(
    words: tuple[str | Path, ...], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--seed" in refused(*words, "--seed", str(seed))
    assert list(tmp_path.iterdir()) == []


def test_the_largest_seed_draws() -> None:
    options = ("--temperature", "1", "--max-new-tokens", "1", "--seed", str(2**63 - 1))
    assert call("run", LLAVA, "--mini", *ASKED, *options).exit_code == 0


def test_a_temperature_out_of_range_names_the_range() -> None:
    said = refused("run", LLAVA, "--mini", *ASKED, "--temperature", "1e30")
    assert "0 (greedy) to 10,000 is expected" in said


def test_weights_have_one_source(tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint = ("build", LLAVA, "--output", out, "--checkpoint", tmp_path)
    for more in (("--mini",), ("--seed", "1"), ("--seed", "0")):
        said = refused(*checkpoint, *more)
        assert more[0] in said
        assert "give one of them" in said
    assert not out.exists()


def test_two_images_among_words_where_none_can_be_placed() -> None:
    prompt = "One <image> and <image>?"
    picture = ROOT / "docs" / "images" / "shapes.png"
    images = ("--image", picture, "--image", picture)
    budget = ("--set", "token_budget.images=2")
    said = refused("run", VISUALBERT, "--mini", *budget, *images, "--prompt", prompt)
    assert "fusion.token" not in said
    assert "leave the markers out" in said


# -- commands to paste -----------------------------------------------------------------------------


def test_the_printed_command_makes_the_same_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = "about=it's two words and\n a second \\ line"
    sets = ("--set", "token_budget.text=1000", "--set", about)
    monkeypatch.chdir(ROOT)
    out = tmp_path / "one two"
    shown = call("build", LLAVA, "--output", out, *sets).stdout
    assert f"--output {shlex.quote(str(out))}" in shown
    typed = shown.splitlines()[-1].strip().removeprefix("vlmc ")
    words = subprocess.run(
        ["bash", "-c", rf"printf '%s\0' {typed}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    place = ["--checkpoint", "DIR", "--output", str(out)]
    assert words == ["build", str(LLAVA), *sets, *place]
    manifest = json.loads((out / "manifest.json").read_text())
    command = manifest["artifacts"]["weights"]["command"]
    assert command.startswith("vlmc build specs/llava-1.5.yaml --set token_budget.text=1000 --set ")
    assert "\n" not in command
    for name in ("README.md", "spec.resolved.yaml"):
        text = (out / name).read_text()
        assert command.removesuffix(" --checkpoint DIR") in text
        assert str(out) not in text
    assert vlmc.load_spec(out).token_budget.text == 1000
    assert vlmc.build(out).unchanged


def test_a_folder_is_built_again_from_its_own_seed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    vlmc.build(LLAVA, out, overrides=["artifacts=[model]"], mini=True, seed=3)
    assert vlmc.build(out).unchanged
    assert not vlmc.build(out, seed=4).unchanged


def test_the_twin_of_overrides_is_asked_with_them(tmp_path: Path) -> None:
    overrides = ["token_budget.text=1000", "artifacts=[model]"]
    vlmc.build(LLAVA, tmp_path / "out", overrides=overrides, mini=True)
    readme = (tmp_path / "out" / "README.md").read_text()
    sets = "--set token_budget.text=1000 --set 'artifacts=[model]'"
    assert f"vlmc run specs/llava-1.5.yaml {sets} --mini" in readme


# -- validate --------------------------------------------------------------------------------------


def test_a_missing_file_hides_no_diagnostics(wrong: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    for order in ((wrong, absent), (absent, wrong)):
        text = call("validate", *order)
        assert text.exit_code == 2
        assert "VLMC010" in text.stderr
        assert f"error: {absent}: there is no such file" in text.stderr
        github = call("validate", *order, "--format", "github")
        assert github.exit_code == 2
        assert "title=VLMC010" in github.stdout
        assert str(absent) in github.stderr
        document = json.loads(call("validate", *order, "--json").stdout)
        assert document["version"] == 1
        assert document["exit"] == 2
        assert str(absent) in document["error"]
        assert [found["code"] for found in document["diagnostics"]] == ["VLMC010"]
    assert call("validate", wrong).exit_code == 1
    alone = call("validate", absent)
    assert (alone.exit_code, alone.stdout) == (2, "")


def test_errors_in_json_have_a_version(tmp_path: Path) -> None:
    done = call("build", tmp_path / "absent.yaml", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["version"] == 1


def test_one_form_at_a_time() -> None:
    assert "--format github" in refused("validate", LLAVA, "--json", "--format", "github")
    assert call("validate", LLAVA, "--json", "--format", "json").exit_code == 0


# -- wording ---------------------------------------------------------------------------------------


def test_a_folder_without_a_build_is_called_so(tmp_path: Path) -> None:
    assert "is a folder, but no build" in refused("validate", tmp_path)


def test_one_build_is_current(tmp_path: Path) -> None:
    vlmc.build(LLAVA, tmp_path / "out")
    done = call("build", LLAVA, "--check", "--output", tmp_path / "out")
    assert done.stdout == "1 build is current\n"


def test_explain_names_the_whole_code() -> None:
    document = json.loads(call("explain", "130", "--json").stdout)
    assert document["code"] == "VLMC130"
    assert document["page"].startswith("# VLMC130: ")


# -- the Python API --------------------------------------------------------------------------------


def test_overrides_are_a_list() -> None:
    for function in (vlmc.load_spec, vlmc.build, vlmc.check):
        with pytest.raises(UsageError, match="overrides are a list of texts"):
            function(LLAVA, overrides="token_budget.text=1000")


def test_a_model_is_built_where_and_as_it_can_be() -> None:
    spec = vlmc.load_spec(LLAVA)
    half = vlmc.build_model(spec, dtype="bf16", mini=True)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with pytest.raises(UsageError, match=r"^device foo: cpu"):
        vlmc.build_model(spec, device="foo", mini=True)
    with pytest.raises(UsageError, match=r"^dtype int4: fp32, bf16, fp16"):
        vlmc.build_model(spec, dtype="int4", mini=True)
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentFault, match=r"^device cuda cannot be used here"):
            vlmc.build_model(spec, device="cuda", mini=True)
