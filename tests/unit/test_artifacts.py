"""Which artifacts a build makes, when it makes them again, and that only sound ones stand."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_writer import describe, folder, texts, tree, weights
from typer.testing import CliRunner

import vlmc
from vlmc import pipeline
from vlmc.commands import app
from vlmc.diagnostics import EnvironmentFault, SpecError, UsageError
from vlmc.emit import fresh, room, staging, writer
from vlmc.emit.artifact import Artifact, Deferred, Graphs, Needed
from vlmc.emit.catalog import uncommitted
from vlmc.emit.faults import NotHere
from vlmc.emit.manifest import MEASURED, NAME, Manifest
from vlmc.emit.options import Options, check
from vlmc.emit.record import File, hashed
from vlmc.emit.store import Store, store
from vlmc.emit.verify import Unsound
from vlmc.emit.verify.finite import blaming_weights

LLAVA = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
assert folder  # a fixture: a folder to build, with an atomic exchange and without


class Made:
    """A folder of graphs that counts how often it is made, and keeps a link to the weights."""

    def __init__(self, recipe: str = "r") -> None:
        self.times = 0
        self.kept: list[str] = []
        self.graphs = Graphs(
            path="onnx", recipe=recipe, command="vlmc x", make=self.make, keep=self.keep
        )

    def make(self, place: Path, needed: Needed) -> None:
        self.times += 1
        assert sorted(needed) == ["weights/model.safetensors"]
        (place / "a.onnx").write_text("graph")
        (place / "weights").mkdir()
        os.link(place.parent / "weights" / "model.safetensors", place / "weights" / "m.safetensors")

    def keep(self, place: Path, needed: Needed) -> None:
        self.kept.append(place.name)


def build(
    place: Path, artifacts: list[Artifact], verify: writer.Verify = writer.unverified
) -> Manifest:
    return writer.write(place, artifacts, describe, verify=verify)


# -- made again, or not ----------------------------------------------------------------------------


def test_graphs_are_made_once_and_share_the_weights(folder: Path) -> None:
    made = Made()
    manifest = build(folder, [*texts(a_txt="1"), weights(), made.graphs])
    assert sorted(tree(folder)) == sorted((*manifest.files, NAME))
    assert (folder / "onnx/weights/m.safetensors").samefile(folder / "weights/model.safetensors")
    assert build(folder, [*texts(a_txt="1"), weights(), made.graphs]).unchanged
    build(folder, [*texts(a_txt="2"), weights(), made.graphs])
    assert (made.times, made.kept) == (1, ["onnx"])
    assert (folder / "onnx/weights/m.safetensors").samefile(folder / "weights/model.safetensors")
    assert manifest.verify(folder)[0].startswith("a.txt has changed")


def test_graphs_are_made_again_when_what_they_follow_from_changes(folder: Path) -> None:
    made = Made()
    build(folder, [weights(b"1"), made.graphs])
    build(folder, [weights(b"2", source="seed 1"), made.graphs])
    assert made.times == 2, "of other weights"
    other = Made("another recipe")
    build(folder, [weights(b"2", source="seed 1"), other.graphs])
    assert other.times == 1
    same = Made()
    build(folder, [weights(b"2", source="the same values from elsewhere"), same.graphs])
    assert same.times == 1, "another recipe again"
    still = Made()
    build(folder, [weights(b"2", source="seed 1"), still.graphs])
    assert still.times == 0, "the weights are the same bytes"
    links = ["onnx/weights/m.safetensors", "weights/model.safetensors"]
    assert (folder / links[0]).samefile(folder / links[1]), "one copy even so"


def test_damaged_graphs_are_made_again(folder: Path) -> None:
    made = Made()
    build(folder, [weights(), made.graphs])
    (folder / "onnx" / "a.onnx").write_text("grapH")
    build(folder, [weights(), made.graphs])
    assert (made.times, (folder / "onnx" / "a.onnx").read_text()) == (2, "graph")


def test_graphs_wait_for_what_they_need(folder: Path) -> None:
    off = Deferred(path="weights", reason="none", command="vlmc build x --checkpoint DIR")
    made = Made()
    status = build(folder, [*texts(a_txt="1"), off, made.graphs]).artifacts["onnx"]
    assert (status.status, status.reason, status.command) == (
        "deferred",
        "it needs weights",
        "vlmc build x --checkpoint DIR",
    )
    build(folder, [*texts(a_txt="1"), weights(), made.graphs])
    build(folder, [*texts(a_txt="1"), replace(off, fits=lambda place: True), made.graphs])
    assert (made.times, (folder / "onnx").exists()) == (1, True), "weights that stay are enough"


def test_what_the_machine_lacks_is_deferred(folder: Path) -> None:
    def lacking(place: Path, needed: Needed) -> None:
        (place / "half").touch()
        raise NotHere("there is no compiler here")

    status = build(folder, [weights(), replace(Made().graphs, make=lacking)]).artifacts["onnx"]
    assert (status.status, status.reason) == ("deferred", "there is no compiler here")
    assert status.command == "vlmc x"
    assert not (folder / "onnx").exists()


def test_what_is_not_sound_never_stands(folder: Path) -> None:
    measured = b'{"sound": true}'
    good = Made()
    build(folder, [*texts(a_txt="1"), weights(), good.graphs], lambda *given: measured)
    before = tree(folder)

    def refuse(place: Path, manifest: Manifest, former: bytes | None) -> bytes | None:
        assert (place / "onnx" / "a.onnx").exists(), "it is asked about the whole new build"
        assert former == measured
        raise EnvironmentFault("onnx is not sound")

    bad = Made("bad")
    with pytest.raises(EnvironmentFault, match="not sound"):
        build(folder, [*texts(a_txt="2"), weights(), bad.graphs], refuse)
    assert tree(folder) == before
    assert bad.kept == [], "and nothing of it is kept for others"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_weights_that_are_no_numbers_are_blamed_and_no_artifact(folder: Path, value: float) -> None:
    def fill(place: Path) -> None:
        values = {"encoder.a": torch.ones(2), "language.b": torch.tensor([1.0, value])}
        save_file(values, place / "model.safetensors")

    def refuse(place: Path, manifest: Manifest, former: bytes | None) -> bytes | None:
        raise Unsound("onnx/ does not compute what the model does")

    made = replace(weights(), write=fill)
    with pytest.raises(EnvironmentFault) as raised:
        build(folder, [made, Made().graphs], blaming_weights(refuse))
    blamed = "weights hold NaN or infinity: language.b (part: language)"
    said = "onnx/ does not compute" if value == 1.0 else blamed
    assert str(raised.value).startswith(said)


def test_what_was_measured_lies_beside_the_build(folder: Path) -> None:
    artifacts = [*texts(a_txt="1"), weights(), Made().graphs]
    manifest = build(folder, artifacts, lambda *given: b"1")
    assert (folder / MEASURED).read_bytes() == b"1"
    assert MEASURED not in manifest.files
    assert build(folder, artifacts, lambda place, manifest, former: former).unchanged
    assert not build(folder, artifacts, lambda *given: b"2").unchanged
    assert (folder / MEASURED).read_bytes() == b"2"
    build(folder, texts(a_txt="1"))
    assert not (folder / MEASURED).exists(), "it is of what is there"


def test_a_file_among_an_artifacts_own_is_found(folder: Path) -> None:
    manifest = build(folder, [weights(), Made().graphs])
    (folder / "onnx" / "b.onnx").touch()
    (folder / "notes.txt").touch()
    assert manifest.verify(folder) == ["onnx/b.onnx was put there since it was built"]


# -- what is asked for -----------------------------------------------------------------------------


def test_artifacts_stand_in_the_order_in_which_they_are_made(tmp_path: Path) -> None:
    spec = vlmc.load_spec(LLAVA, ["artifacts=[aoti, onnx]"])
    assert spec.artifacts == ("model", "onnx", "aoti")
    assert vlmc.load_spec(LLAVA).artifacts == ("model", "onnx")
    assert spec.mini().artifacts == spec.artifacts
    manifest = vlmc.build(LLAVA, tmp_path / "out", overrides=["target=mi300x"], artifacts=["aoti"])
    assert [*manifest.artifacts][-2:] == ["weights", "aoti"]
    assert manifest.artifacts["aoti"].reason == "it needs weights"
    assert vlmc.build(tmp_path / "out").unchanged, "its own spec says the same"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("[model, onx]", "VLMC012", "artifacts[1]: onnx"),
        ("[onnx, onnx]", "VLMC012", "remove it"),
        ("[triton]", "VLMC019", "leave it out, or choose one of what `vlmc schema` lists"),
        ("onnx", "VLMC011", None),
    ],
)
def test_artifacts_that_cannot_be_made(words: str, code: str, said: str | None) -> None:
    with pytest.raises(SpecError) as raised:
        vlmc.load_spec(LLAVA, [f"artifacts={words}"])
    (found,) = raised.value.diagnostics
    assert (found.code, found.help) == (code, said)


@pytest.mark.parametrize(
    ("options", "artifacts", "words"),
    [
        (Options(opset=20), ("model",), "--opset is about the artifact onnx"),
        (Options(quantize="int8"), ("model", "aoti"), "--quantize is about the artifact onnx"),
        (Options(layout="transformers.js"), ("model",), "--layout is about the artifact onnx"),
        (Options(quantize_vision=True), ("model", "onnx"), "--quantize-vision means nothing"),
        (Options(max_error=0.1), ("model", "onnx"), "--max-error means nothing"),
    ],
)
def test_options_that_contradict(options: Options, artifacts: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(options, artifacts, valued=True)


def test_a_number_format_needs_weights_to_write() -> None:
    check(Options(dtype="bf16"), ("model",), valued=True)
    with pytest.raises(UsageError, match="this build writes none"):
        check(Options(dtype="bf16"), ("model",), valued=False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("opset", 22, "--opset 22: 20, 23 is expected"),
        ("quantize", "int2", "--quantize int2: int4, int8"),
        ("dtype", "fp8", "--dtype fp8"),
        ("max_error", -1.0, "--max-error -1"),
        ("max_error", float("nan"), "--max-error nan"),
    ],
)
def test_values_that_no_option_takes(name: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Options(**{name: value})  # pyright: ignore[reportArgumentType]


def test_a_build_folder_is_made_in_the_same_way_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = Options(opset=20, quantize="int4", layout="transformers.js")
    vlmc.build(LLAVA, out, artifacts=["onnx"], options=options)  # deferred: there are no weights
    assert Manifest.read(out).options == {
        "opset": 20,
        "quantize": "int4",
        "layout": "transformers.js",
    }
    assert pipeline.plan(out, out, (), False).options == options, "as `verify` asks"
    assert vlmc.build(out).unchanged
    assert pipeline.check(LLAVA, out, artifacts=["onnx"]) == []
    other = pipeline.plan(out, None, (), False, options={"quantize": "int8", "opset": 23})
    assert other.options == Options(quantize="int8", layout="transformers.js"), "a call says more"
    assert pipeline.plan(out, None, ("artifacts=[model]",), False).options == Options()
    done = CliRunner().invoke(app, ["build", str(out), "--opset", "23"])
    assert done.exit_code == 0, done.stderr
    assert sorted(Manifest.read(out).options) == ["layout", "quantize"]


def test_the_usual_options_are_not_written_and_others_are_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = vlmc.build(LLAVA, out, artifacts=["model"]).text()
    assert '"options"' not in text
    for wrong in ('{"opset": 22}', '{"quantize_vision": "no"}', '{"colour": "red"}'):
        data = text.replace('"files": {', f'"options": {wrong}, "files": {{', 1).encode()
        with pytest.raises(EnvironmentFault, match="is not a manifest that vlmc wrote: options"):
            Manifest.parse(data, out)


def test_options_as_they_are_typed() -> None:
    assert Options().given() == ()
    given = Options(quantize="int4", quantize_vision=True, max_error=0.5).given()
    assert given == ("--quantize int4", "--quantize-vision", "--max-error 0.5")
    command = pipeline.plan(LLAVA, None, (), False, options=Options(opset=20), seed=None).command()
    assert command == "vlmc build specs/llava-1.5.yaml", "texts do not depend on them"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--artifacts", "onx"), "--artifacts onx: there is no such artifact; onnx"),
        (("--artifacts", "model,triton"), "this release cannot make it (a model repository"),
        (("--artifacts", "model", "--opset", "20"), "--opset is about the artifact onnx"),
        (("--dtype", "bf16"), "this build writes none"),
        (("--check", "--opset", "20"), "--check compares text outputs"),
        (("--opset", "22"), "--opset 22"),
    ],
)
def test_commands_that_mean_nothing(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["build", str(LLAVA), "--output", str(out), *words])
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    assert not out.exists()


# -- nothing to build ------------------------------------------------------------------------------


def test_nothing_changed_needs_no_torch(tmp_path: Path) -> None:
    vlmc.build(LLAVA, tmp_path / "out")
    code = (
        "import sys, vlmc\n"
        f"assert vlmc.build({str(LLAVA)!r}, {str(tmp_path / 'out')!r}).unchanged\n"
        "assert not {'torch', 'numpy', 'onnx', 'libcst'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_texts_and_weights_need_no_compiler(tmp_path: Path) -> None:
    """They take seconds; torch's compiler and the runtimes of graphs would take as long again."""
    code = (
        "import sys, vlmc\n"
        f"vlmc.build({str(LLAVA)!r}, {str(tmp_path / 'out')!r}, mini=True, artifacts=['model'])\n"
        "heavy = {'sympy', 'torch._dynamo', 'torch._inductor', 'onnx', 'onnxruntime'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("change", ["spec", "file", "missing", "options", "source", "seed"])
def test_any_change_is_looked_at(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, kept = tmp_path / "llava-1.5.yaml", tmp_path / "out", Store(root=tmp_path / "cache")
    path.write_text(LLAVA.read_text(encoding="utf-8"), encoding="utf-8")
    plan = pipeline.plan(path, out, ("artifacts=[model]",), True)
    fresh.remember(plan, vlmc.build(path, out, artifacts=["model"], mini=True), kept)
    assert fresh.current(plan, kept) is not None
    if change == "spec":
        path.write_text(path.read_text(encoding="utf-8").replace("layers: 2", "layers: 3"))
        plan = pipeline.plan(path, out, ("artifacts=[model]",), True)
    elif change == "file":
        data = (out / "arch.txt").read_bytes()
        (out / "arch.txt").write_bytes(b"X" + data[1:])
    elif change == "missing":
        (out / "weights" / "model.safetensors").unlink()
    elif change == "options":
        plan = replace(plan, options=Options(dtype="bf16"))
    elif change == "source":
        monkeypatch.setattr(fresh, "source", lambda: "another vlmc")
    else:
        plan = replace(plan, seed=1)
    assert fresh.current(plan, kept) is None


def test_a_build_measured_on_its_twin_is_looked_at_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kept = tmp_path / "out", Store(root=tmp_path / "cache")
    plan = pipeline.plan(LLAVA, out, ("artifacts=[model]",), True)
    made = vlmc.build(LLAVA, out, artifacts=["model"], mini=True)
    (out / MEASURED).write_text('{"engines": {"onnx": {"measured": "twin"}}}')
    fresh.remember(plan, made, kept)
    assert fresh.current(plan, kept) is None
    monkeypatch.setattr(room, "free_memory", lambda: 0)
    assert fresh.current(plan, kept) is not None


@pytest.mark.parametrize("place", ["over", "instead"])
def test_older_weights_in_the_place_of_those_built_are_found(tmp_path: Path, place: str) -> None:
    out = tmp_path / "out"
    vlmc.build(LLAVA, out, mini=True, artifacts=["model"])
    file = out / "weights" / "model.safetensors"
    right = file.read_bytes()
    if place == "instead":
        file.unlink()
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    os.utime(file, ns=(0, 0))  # as `cp -p` and rsync leave a file of an earlier day
    assert not vlmc.build(LLAVA, out, mini=True, artifacts=["model"]).unchanged
    assert file.read_bytes() == right


def test_weights_that_lie_as_they_were_left_are_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, times = tmp_path / "out", list[str]()

    def counted(path: Path) -> File:
        times.append(path.name)
        return hashed(path)

    vlmc.build(LLAVA, out, mini=True, artifacts=["model"])
    monkeypatch.setattr(staging, "hashed", counted)
    for _ in range(2):  # a build that was not settled, after one that was, and after another
        monkeypatch.setattr(fresh, "_by_host", lambda *given: True)
        monkeypatch.setattr(fresh, "current", lambda *given: None)
        assert vlmc.build(LLAVA, out, mini=True, artifacts=["model"]).unchanged
    assert times == []
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "empty"))
    assert vlmc.build(LLAVA, out, mini=True, artifacts=["model"]).unchanged
    assert times == ["model.safetensors"], "nothing is known of how they lay"


def test_notes_on_builds_stay_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMC_CACHE_BYTES", "0")
    vlmc.build(LLAVA, tmp_path / "out", artifacts=["model"])
    assert store().notes() == []


def test_weights_in_the_number_format_that_is_asked_for(tmp_path: Path) -> None:
    from vlmc.builder.shards import stored_tensors

    half = Options(dtype="bf16")
    out = tmp_path / "out"
    built = vlmc.build(LLAVA, out, mini=True, artifacts=["model"], options=half)
    assert {one.dtype for one in stored_tensors(out / "weights").values()} == {"BF16"}
    again = vlmc.build(LLAVA, out, mini=True, artifacts=["model"])
    assert again.artifacts["weights"].source != built.artifacts["weights"].source
    assert {one.dtype for one in stored_tensors(out / "weights").values()} == {"F32"}


# -- graphs for the target's device ----------------------------------------------------------------


def emitted(monkeypatch: pytest.MonkeyPatch, gpu: bool, **change: str) -> dict[str, Artifact]:
    """What a build with compiled graphs makes beside its texts, on a machine with a GPU or without,
    and its notes under `notes`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    notes: list[str] = []
    overrides = ["artifacts=[model,aoti]", *(f"{key}={value}" for key, value in change.items())]
    plan = pipeline.plan(LLAVA, None, overrides, False, note=notes.append)
    found = {one.path: one for one in uncommitted(plan)}
    assert "aoti" in found
    assert bool(notes) == gpu
    assert all("capability 9.0" in one and "CUDA_VISIBLE_DEVICES= vlmc " in one for one in notes)
    return found


def test_graphs_for_the_targets_gpu_are_put_off_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = emitted(monkeypatch, gpu=False)["aoti/cuda"]
    assert isinstance(off, Deferred)
    assert "there is no CUDA device here, and the target, a100-80gb, is one" in off.reason
    assert off.command == (
        "vlmc build specs/llava-1.5.yaml --set 'artifacts=[model,aoti]' --checkpoint DIR"
    )
    assert "aoti/cuda" not in emitted(monkeypatch, gpu=True)
    other = emitted(monkeypatch, gpu=False, target="mi300x")
    assert "aoti/cuda" not in other, "nothing of CUDA is for that device"
    twin = uncommitted(pipeline.plan(LLAVA, None, ["artifacts=[model,aoti]"], True))
    assert [one.path for one in twin] == ["weights", "aoti"], "a twin has no target"


def test_what_a_build_puts_off_for_its_target_is_in_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for _ in range(2):  # and a build again is not kept from standing
        manifest = vlmc.build(LLAVA, tmp_path / "out", artifacts=["aoti"])
    assert manifest.unchanged
    status = Manifest.read(tmp_path / "out").artifacts["aoti/cuda"]
    assert status.status == "deferred"
    assert "  aoti/cuda deferred: there is no CUDA device here" in manifest.summary()
    assert manifest.verify(tmp_path / "out") == []
