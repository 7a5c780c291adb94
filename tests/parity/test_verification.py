"""Artifacts are executed and compared: what is sound passes, what is broken is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

import vlmc
from vlmc import pipeline
from vlmc.builder.shards import stored_tensors
from vlmc.commands import app
from vlmc.diagnostics import EnvironmentFault
from vlmc.emit import room
from vlmc.emit.manifest import MEASURED, NAME, Manifest
from vlmc.emit.options import Options
from vlmc.emit.record import hashed
from vlmc.emit.seal import sealed
from vlmc.emit.store import Store
from vlmc.emit.verify import Unsound, engines, judge, verifier, verify
from vlmc.emit.verify.cases import STEPS, cases
from vlmc.emit.verify.measure import errors
from vlmc.emit.verify.record import Verification
from vlmc.runtime.describe import describe
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.engines.open import open_engine
from vlmc.runtime.engines.paged import BlockTable

SPECS = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
LLAVA = next(path for path in SPECS if path.stem == "llava-1.5")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified") / "out"
    vlmc.build(LLAVA, folder, mini=True, artifacts=["onnx"])
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The build, to be broken; its weights under two names."""
    folder = tmp_path / "out"
    shutil.copytree(built, folder)
    return folder


def measured(folder: Path) -> Verification:
    plan = pipeline.plan(folder, folder, (), False)
    return verify(plan, folder, Manifest.read(folder), {})


def flip(path: Path, begin: int, end: int) -> None:
    """Inverts the sign of the numbers of fp32 at some bytes."""
    data = bytearray(path.read_bytes())
    data[begin + 3 : end : 4] = bytes(byte ^ 0x80 for byte in data[begin + 3 : end : 4])
    path.write_bytes(data)


def place(path: Path, name: str) -> tuple[int, int]:
    """The bytes of a tensor in a safetensors file."""
    head = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    begin, end = json.loads(path.read_bytes()[8:head])[name]["data_offsets"]
    return head + begin, head + end


# -- what is measured ------------------------------------------------------------------------------


def test_a_build_is_measured_when_it_is_made(built: Path) -> None:
    found = Verification.parse((built / MEASURED).read_bytes())
    assert found is not None
    onnx = found.engines["onnx"]
    assert (onnx.measured, onnx.tolerance, onnx.judged) == ("full", 1e-4, "max_relative")
    assert 0 < onnx.max_relative < 1e-5
    assert onnx.tokens == 1.0
    assert {case.graph for case in onnx.cases} == {"vision", "language"}
    assert {case.steps for case in onnx.cases if case.graph == "language"} == {STEPS}
    assert {case.images for case in onnx.cases} == {(0,), (1,), (1, 1), (0, 1)}
    assert any(len(set(case.lengths)) == 2 for case in onnx.cases), "rows of unlike lengths"
    assert set(onnx.runtime) == {"onnxruntime"}
    assert set(found.host) == {"cpu", "system", "python"}
    assert MEASURED not in Manifest.read(built).files
    assert str(built.parent) not in (built / MEASURED).read_text()


def test_the_same_build_is_not_measured_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(judge, "_measure", never)
    before = (copy / MEASURED).read_bytes()
    manifest = Manifest.read(copy)
    check = verifier(pipeline.plan(copy, copy, (), False))
    assert check(copy, manifest, before) == before
    with pytest.raises(AssertionError, match="measured again"):
        check(copy, manifest, None)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
@pytest.mark.parametrize("mini", [False, True], ids=["full", "mini"])
def test_every_design_has_cases_within_its_budget(path: Path, mini: bool) -> None:
    plan = pipeline.plan(path, None, (), mini)
    design = describe(plan.spec, plan.arch)
    found = cases(design)
    assert {len(case.prompts) for case in found} == {1, 2}
    assert any(len(set(case.lengths)) == 2 for case in found)
    counts = {count for case in found for count in case.images}
    assert {0, 1, min(design.max_images, 3)} <= counts
    for case in found:
        assert case.steps == (STEPS if design.generates else 0)
        assert max(case.lengths) + case.steps < design.capacity
        for prompt in case.prompts:
            inside = design.serving in ("sequence", "encoder_decoder")
            frames = 1 if case.shape is None or design.frames == 1 else case.shape[1]
            each = design.positions[frames - 1] if inside else 0
            assert prompt.visual.sum() == each * len(prompt.images)
            assert (prompt.ids >= 0).all()
            assert (prompt.ids < design.vocabulary).all()
    again = cases(design)
    assert all(
        np.array_equal(a.ids, b.ids)
        for one, other in zip(found, again, strict=True)
        for a, b in zip(one.prompts, other.prompts, strict=True)
    )


def test_errors_are_relative_to_what_was_expected() -> None:
    right = np.array([[2.0, -4.0]], np.float32)
    found = errors([(right, right + np.float32(0.5))])
    assert (found.largest, found.relative, round(found.mean, 6)) == (0.5, 0.125, 0.166667)
    for wrong in (right[:, :1], np.array([[np.nan, 0.0]], np.float32)):
        assert errors([(right, wrong)]).relative == float("inf")


# -- what is broken --------------------------------------------------------------------------------


def test_a_wrong_constant_of_a_graph_is_caught(copy: Path) -> None:
    path = copy / "onnx" / "constants.safetensors"
    with safe_open(path, framework="np") as file:
        name = next(n for n in file.keys() if file.get_tensor(n).dtype == np.float32)  # noqa: SIM118
    flip(path, *place(path, name))
    assert not measured(copy).engines["onnx"].sound


@pytest.mark.parametrize(
    ("name", "graph"),
    [
        ("language.layers.0.mlp.down.weight", "language"),
        ("adapter.layers.0.weight", "vision"),
    ],
)
def test_a_wrong_range_of_weights_is_caught(copy: Path, name: str, graph: str) -> None:
    path = copy / "onnx" / "weights" / "model.safetensors"  # a copy here: eager reads the right one
    flip(path, *place(path, name))
    onnx = measured(copy).engines["onnx"]
    assert not onnx.sound
    assert onnx.tokens < 1 or graph == "vision"
    off = {case.graph for case in onnx.cases if case.max_relative > 1e-4}
    assert off == {"language", graph}


def test_a_graph_that_no_runtime_opens_is_named(copy: Path) -> None:
    path = copy / "onnx" / "decoder.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Unsound, match=r"onnx/ cannot be executed by the engine onnx"):
        measured(copy)


def test_an_unsound_build_leaves_the_old_one(
    built: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Store.fetch

    def spoilt(self: Store, key: str, target: Path, weights: dict[str, Path]) -> bool:
        if not fetch(self, key, target, weights):
            return False
        file = target / "weights" / "model.safetensors"
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data)
        flip(file, *place(file, "language.layers.0.mlp.down.weight"))
        return True

    monkeypatch.setattr(Store, "fetch", spoilt)
    shutil.rmtree(copy / "onnx")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(Unsound, match="onnx/ does not compute what the model does") as raised:
        vlmc.build(LLAVA, copy, mini=True, artifacts=["onnx"])
    assert "language is " in str(raised.value)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert [path.name for path in copy.parent.iterdir()] == ["out"]


def test_what_a_format_loses_by_itself_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(judge.TOLERANCES, "fp16", 1e-9)
    notes: list[str] = []
    with pytest.raises(Unsound, match="onnx/ does not compute what the model does"):
        vlmc.build(
            LLAVA,
            tmp_path / "out",
            mini=True,
            artifacts=["onnx"],
            options=Options(dtype="fp16"),
            note=notes.append,
        )
    said = [note for note in notes if note.startswith("in fp16 the model itself, eager, is ")]
    lost = float(said[0].split("eager, is ")[1].split(" off")[0])
    assert 1e-5 < lost < 2e-2
    assert "1e-09 is allowed" in said[0]


def allowing(folder: Path, tolerance: float) -> bytes:
    """What verification.json says, with another tolerance in it, sealed by who wrote it there."""
    document = json.loads((folder / MEASURED).read_text())
    document["engines"]["onnx"]["tolerance"] = tolerance
    return sealed(document).encode()


def test_what_is_allowed_is_not_read_from_what_was_measured(copy: Path) -> None:
    path = copy / "onnx" / "weights" / "model.safetensors"
    flip(path, *place(path, "language.layers.0.mlp.down.weight"))
    manifest = json.loads((copy / NAME).read_text())
    manifest["files"]["onnx/weights/model.safetensors"] = hashed(path).model_dump()
    (copy / NAME).write_text(sealed(manifest))
    (copy / MEASURED).write_bytes(allowing(copy, 1e9))
    verdict = pipeline.verify(copy)
    assert (verdict.faults, verdict.sound) == ((), False)
    assert verdict.engines["onnx"].tolerance == 1e-4


def test_a_tolerance_of_ones_own_is_no_reason_not_to_measure(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(judge, "_measure", never)
    check = verifier(pipeline.plan(copy, copy, (), False))
    with pytest.raises(AssertionError, match="measured again"):
        check(copy, Manifest.read(copy), allowing(copy, 1e9))


def test_quantised_graphs_say_themselves_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    path = tmp_path / "onnx" / "quantisation.json"
    for text in ("{}", "[]", "{", '{"int8": {"mean": 0.1}}'):
        path.write_text(text)
        with pytest.raises(EnvironmentFault, match="build it again"):
            judge._tolerance(judge.ENGINES["onnx-int8"], tmp_path, "fp32")
    path.write_text('{"int8": {"mean": 0.1, "allowed": 0.3}}')
    assert judge._tolerance(judge.ENGINES["onnx-int8"], tmp_path, "fp32") == 0.3
    assert judge._tolerance(judge.ENGINES["onnx"], tmp_path, "bf16") == 2e-2


# -- beside fp32 on the design itself --------------------------------------------------------------


def test_what_does_not_fit_is_measured_on_its_twin(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(room, "free_memory", lambda: 0)
    plan = pipeline.plan(built, built, (), False, note=notes.append)
    onnx = verify(plan, built, Manifest.read(built), {}).engines["onnx"]
    assert (onnx.measured, onnx.sound) == ("twin", True)
    assert "is verified on its laptop-size twin" in notes[0]


def test_half_precision_has_a_bound_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "half"
    vlmc.build(LLAVA, out, mini=True, artifacts=["onnx"], options=Options(dtype="bf16"))
    found = Verification.parse((out / MEASURED).read_bytes())
    assert found is not None
    assert found.engines["onnx"].tolerance == 2e-2
    assert {one.dtype for one in stored_tensors(out / "weights").values()} == {"BF16"}


# -- graphs for a cache in blocks ------------------------------------------------------------------


@pytest.fixture
def paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build with graphs for torch.compile, of which those for a cache in blocks are executed: by
    the backend `eager` in the place of a compiler, which would take a minute."""
    folder = tmp_path / "paged"
    name = "compile-paged"
    monkeypatch.setattr(judge, "ENGINES", {name: judge.ENGINES[name]})
    monkeypatch.setattr(engines, "open_engine", Opened())
    vlmc.build(LLAVA, folder, mini=True, artifacts=["compile"])
    return folder


class Opened:
    """Opens engines, and notes by which backend they were to be compiled."""

    def __init__(self) -> None:
        self.backends: list[str] = []

    def __call__(self, *given: Any, backend: str, **named: Any) -> Engine:
        self.backends.append(backend)
        return open_engine(*given, backend="eager", **named)


def test_graphs_for_a_cache_in_blocks_are_executed(
    paged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Verification.parse((paged / MEASURED).read_bytes())
    assert known is not None
    assert engines.open_engine.backends == ["eager", "inductor"]
    found = known.engines["compile-paged"]
    assert (found.artifact, found.tolerance, found.tokens) == ("compile", 1e-4, 1.0)
    assert found.runtime["graphs"] == "as exported; one case compiled"
    assert 0 < found.max_relative < 1e-5
    rows = [(case.images, case.steps) for case in found.cases if case.graph == "language"]
    every = [((0,), STEPS), ((1,), STEPS), ((1, 1), STEPS), ((0, 1), STEPS)]
    assert rows == [*every, ((1, 1), STEPS)], "the last one is compiled"
    # The table of blocks matters: one that leads all rows to one block is noticed.
    monkeypatch.setattr(BlockTable, "reach", lambda self, last: False)
    assert not measured(paged).engines["compile-paged"].sound
    (paged / "compile" / "paged_decode.pt2").write_bytes(b"")
    with pytest.raises(Unsound, match="executed by the engine compile-paged"):
        measured(paged)


# -- vlmc verify -----------------------------------------------------------------------------------


def test_the_command_measures_again(copy: Path) -> None:
    (copy / MEASURED).unlink()
    done = CliRunner().invoke(app, ["verify", str(copy)])
    assert done.exit_code == 0, done.stderr
    for word in ("files are as they were built", "onnx", "full", "100.0%", "sound"):
        assert word in done.stdout
    assert Verification.parse((copy / MEASURED).read_bytes()) is not None
    said = json.loads(CliRunner().invoke(app, ["verify", str(copy), "--json"]).stdout)
    assert said["sound"]
    assert said["engines"]["onnx"]["tokens"] == 1.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("weights/model.safetensors", "has changed since it was built"),
        ("onnx/decoder.onnx", "has changed since it was built"),
        ("README.md", "cannot be read"),
        ("onnx/other.onnx", "was put there since it was built"),
    ],
)
def test_the_command_finds_any_changed_byte(copy: Path, name: str, words: str) -> None:
    path = copy / name
    if words.startswith("has changed"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif words.startswith("cannot"):
        path.unlink()
    else:
        path.touch()
    done = CliRunner().invoke(app, ["verify", str(copy)])
    assert (done.exit_code, f"{name} {words}" in done.stdout) == (3, True), done.stdout


@pytest.mark.parametrize(
    ("name", "was", "now"),
    [
        (NAME, "specs/llava-1.5.yaml", "specs/llava-1.6.yaml"),
        (NAME, "{\n", "{ \n"),
        (MEASURED, '"max_abs": ', '"max_abs": 1'),
        (MEASURED, '"measured": "full"', '"measured": "twin"'),
        (MEASURED, "}\n", ""),
    ],
)
def test_the_command_finds_a_changed_record(copy: Path, name: str, was: str, now: str) -> None:
    path = copy / name
    assert pipeline.verify(copy).faults == ()
    before = path.read_text()
    changed = now.join(before.rsplit(was, 1))
    assert changed != before
    path.write_text(changed)
    done = CliRunner().invoke(app, ["verify", str(copy)])
    assert done.exit_code == 3
    assert f"{name} has changed since it was written" in done.stdout
    assert path.read_text() == changed, "it is not written over without a word"
    if name == MEASURED:
        assert Verification.parse(path.read_bytes()) is None, "no build relies on it"


def test_the_command_refuses_what_is_no_build(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["verify", str(tmp_path / "none")]).exit_code == 2
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert (done.exit_code, "is not a build of vlmc" in done.stderr) == (3, True)
