"""What a build emits: the same bytes for the same spec, and nothing of the machine in them."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmc
from vlmc import pipeline
from vlmc.diagnostics import EnvironmentFault, SpecError, UsageError
from vlmc.emit import catalog
from vlmc.emit.artifact import Build
from vlmc.emit.backends import arch_txt, spec_resolved
from vlmc.emit.manifest import NAME, Manifest, UnreadableManifest
from vlmc.spec.document import ModelSpec

SPECS = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
LLAVA = next(path for path in SPECS if path.stem == "llava-1.5")
both = pytest.mark.parametrize("mini", [False, True], ids=["full", "mini"])
each = pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)

plain_build = partial(vlmc.build, artifacts=["model"])
"""Builds without graphs, which tests of their own are about."""
plain_check = partial(vlmc.check, artifacts=["model"])


# -- spec.resolved.yaml ----------------------------------------------------------------------------


@each
@both
def test_the_resolved_spec_is_the_same_design(path: Path, mini: bool, tmp_path: Path) -> None:
    build = pipeline.plan(path, tmp_path / "out", (), mini)
    file = tmp_path / "spec.resolved.yaml"
    file.write_text(spec_resolved.source(build), encoding="utf-8")
    again = vlmc.load_spec(file)
    assert again.model_dump() == build.spec.model_dump()
    for part in ("encoder", "adapter", "fusion", "language", "head"):
        assert getattr(again, part) == getattr(build.spec, part)
    assert replace(vlmc.resolve(again), mini=mini) == build.arch


@each
def test_the_resolved_spec_reads_alike_in_yaml_1_1(path: Path, tmp_path: Path) -> None:
    text = spec_resolved.source(pipeline.plan(path, tmp_path, (), False))
    document = yaml.safe_load(text)
    spec = vlmc.load_spec(path)
    assert document["language"] == spec.language.model_dump(mode="json")
    assert document["encoder"] == spec.encoder.model_dump(mode="json")


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_survives_the_resolved_spec(text: str) -> None:
    build = _llava()
    spec = build.spec.model_copy(update={"name": text, "about": text})
    assert _read(spec_resolved.source(replace(build, spec=spec)))["about"] == text


@pytest.mark.parametrize(
    "text",
    [
        "1e-5",
        "0o17",
        "0x1f",
        "no",
        "null",
        "~",
        "",
        "12:30:45",
        "1_000",
        ".inf",
        "a: b",
        "#",
        "\x85",
    ],
)
def test_words_that_look_like_values_stay_words(text: str) -> None:
    build = _llava()
    spec = build.spec.model_copy(update={"about": text})
    assert _read(spec_resolved.source(replace(build, spec=spec)))["about"] == text
    assert yaml.safe_load(spec_resolved.source(replace(build, spec=spec)))["about"] == text


@settings(deadline=None)
@given(st.floats(min_value=1e-300, max_value=0.5))
def test_any_number_survives_the_resolved_spec(epsilon: float) -> None:
    build = _llava()
    language = build.spec.language.model_copy(update={"norm_eps": epsilon})
    text = spec_resolved.source(replace(build, spec=_with(build.spec, language=language)))
    assert _read(text)["language"]["norm_eps"] == epsilon
    assert yaml.safe_load(text)["language"]["norm_eps"] == epsilon


def _llava() -> Build:
    return pipeline.plan(LLAVA, Path("out"), (), False)


def _with(spec: ModelSpec, **update: object) -> ModelSpec:
    return spec.model_copy(update=update)


def _read(text: str) -> dict[str, dict[str, object]]:
    from vlmc.spec.reader import parse, plain

    return plain(parse(text, "x"))


# -- arch.txt and README.md ------------------------------------------------------------------------


@each
@both
def test_arch_txt_tells_every_figure(path: Path, mini: bool) -> None:
    arch = vlmc.resolve(vlmc.load_spec(path), mini=mini)
    text = arch_txt.source(arch)
    for node in arch.nodes:
        assert f"{node.role}: {node.kind}" in text
        for child, count in node.parameters.items():
            assert not count or re.search(rf"{child} +{count:,}\n", text)
    for edge in arch.edges:
        assert re.search(rf"{edge.source} +-> {edge.target} +{re.escape(str(edge.type))}\n", text)
    assert f"total {arch.parameters:,}" in re.sub(" +", " ", text)
    assert f"= {arch.tokens.sequence:,}" in text
    assert all(len(line) <= 110 for line in text.splitlines())


@each
@both
def test_texts_say_nothing_of_the_machine(path: Path, mini: bool, tmp_path: Path) -> None:
    build = pipeline.plan(path.absolute(), tmp_path / "out", (), mini)
    words = {str(Path.cwd()), str(tmp_path), str(path.parent), os.uname().nodename}
    for text in catalog.texts(build):
        assert text.text.endswith("\n")
        assert not text.text.endswith("\n\n")
        for word in words:
            found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text.text)
            assert not found, text.path
        assert not re.search(r"\b20[3-9]\d-\d\d-\d\d\b", text.text)


def test_texts_do_not_depend_on_the_hash_seed_the_folder_or_the_locale(tmp_path: Path) -> None:
    program = (
        "import sys, hashlib; from pathlib import Path\n"
        "from vlmc import pipeline; from vlmc.emit import catalog\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    for mini in (False, True):\n"
        "        for text in catalog.texts(pipeline.plan(path, None, (), mini)):\n"
        "            print(path.stem, text.path, hashlib.sha256(text.data).hexdigest())\n"
    )
    seen: set[str] = set()
    for seed, where in (("1", tmp_path), ("2", LLAVA.parent)):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": f"UTC+{seed}"}
        paths = [str(path) if seed == "1" else path.name for path in (LLAVA, SPECS[0])]
        command = [sys.executable, "-c", program, *paths]
        done = subprocess.run(
            command, cwd=where, env=environment, check=True, capture_output=True, text=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1


# -- builds ----------------------------------------------------------------------------------------


def test_a_build_without_weights_says_how_they_come(tmp_path: Path) -> None:
    stages: list[str] = []
    manifest = vlmc.build(
        LLAVA, tmp_path / "out", progress=lambda stage, done=0, total=0: stages.append(stage)
    )
    assert stages == ["loading", "building", "emitting", "writing"]
    weights = manifest.artifacts["weights"]
    assert weights.status == "deferred"
    assert weights.reason == "no checkpoint was given"
    assert weights.command == "vlmc build specs/llava-1.5.yaml --checkpoint DIR"
    assert weights.command in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    typed = f"vlmc build {LLAVA} --checkpoint DIR --output {tmp_path / 'out'}"
    assert typed in manifest.summary()
    arch = vlmc.resolve(vlmc.load_spec(LLAVA))
    assert manifest.predictions.parameters == arch.parameters
    assert manifest.predictions.tokens["sequence"] == arch.tokens.sequence
    assert manifest.verify(tmp_path / "out") == []
    assert vlmc.build(LLAVA, tmp_path / "out").unchanged


def test_a_twin_is_built_with_weights_that_load(tmp_path: Path) -> None:
    import torch

    out = tmp_path / "out"
    manifest = plain_build(LLAVA, out, mini=True)
    assert (manifest.artifacts["weights"].source or "").startswith("seed 0;")
    assert plain_build(LLAVA, out, mini=True).unchanged
    assert not plain_build(LLAVA, out, mini=True, seed=1).unchanged
    plain_build(LLAVA, out, mini=True)
    drawn = vlmc.build_model(vlmc.load_spec(LLAVA), mini=True)
    stored = vlmc.build_model(vlmc.load_spec(out), checkpoint=out)
    for (name, one), (other, two) in zip(
        drawn.named_parameters(), stored.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(one, two)
        assert one.requires_grad == two.requires_grad
    assert vlmc.build(out).unchanged, "a build folder is built again from its own spec"


def test_a_disk_that_refuses_the_weights_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(EnvironmentFault, match="larger than this system allows"):
            vlmc.build(LLAVA, tmp_path / "out", mini=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_the_gates_of_a_twin_are_open() -> None:
    path = next(path for path in SPECS if path.stem == "flamingo-3b")
    twin = vlmc.build_model(vlmc.load_spec(path), mini=True)
    gates = [p for name, p in twin.named_parameters() if name.endswith("gate")]
    assert gates
    assert all(bool((gate == 1).all()) for gate in gates)


def test_what_the_host_cannot_hold_is_deferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmc.emit.backends.weights.free_memory", lambda: 10**9)
    manifest = vlmc.build(LLAVA, tmp_path / "out", seed=3)
    weights = manifest.artifacts["weights"]
    assert weights.status == "deferred"
    assert weights.reason == "28.3 GB of memory are not free here"
    assert weights.command == "vlmc build specs/llava-1.5.yaml --seed 3"
    monkeypatch.setattr("vlmc.emit.backends.weights.free_memory", lambda: 10**12)
    monkeypatch.setattr("vlmc.emit.backends.weights.free_disk", lambda folder: 10**9)
    reason = vlmc.build(LLAVA, tmp_path / "out", seed=3).artifacts["weights"].reason
    assert reason == "28.3 GB of disk are not free here"


def test_a_nearly_full_disk_takes_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 4 * vlmc.resolve(vlmc.load_spec(LLAVA), mini=True).parameters
    monkeypatch.setattr("vlmc.emit.backends.weights.free_disk", lambda folder: size - 1)
    weights = vlmc.build(LLAVA, tmp_path / "out", mini=True).artifacts["weights"]
    assert weights.reason == f"{size / 1e6:.1f} MB of disk are not free here"
    monkeypatch.setattr("vlmc.emit.backends.weights.free_disk", lambda folder: size)
    assert plain_build(LLAVA, tmp_path / "out", mini=True).artifacts["weights"].status == "built"
    monkeypatch.setattr("vlmc.emit.backends.weights.free_memory", lambda: size)
    weights = vlmc.build(LLAVA, tmp_path / "two", mini=True).artifacts["weights"]
    assert weights.reason is not None
    assert weights.reason.endswith("MB of memory and 0.3 GB beside them are not free here")


def test_overrides_reach_the_build(tmp_path: Path) -> None:
    vlmc.build(LLAVA, tmp_path / "out", overrides=["token_budget.text=1000"])
    assert vlmc.load_spec(tmp_path / "out").token_budget.text == 1000


def test_the_default_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert vlmc.build(LLAVA).folder == Path("generated/llava-1.5")
    assert plain_build(LLAVA, mini=True).folder == Path("generated/llava-1.5-mini")


# -- vlmc build --check ----------------------------------------------------------------------------


def test_check_says_what_is_stale_missing_and_extra(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = vlmc.check(LLAVA, out)
    wanted = {text.path for text in catalog.texts(_llava())} | {NAME}
    assert {one.path.relative_to(out).as_posix() for one in found} == wanted
    assert {one.state for one in found} == {"missing"}
    vlmc.build(LLAVA, out)
    assert vlmc.check(LLAVA, out) == []
    (out / "arch.txt").write_text("edited")
    (out / "README.md").unlink()
    (out / "notes.txt").write_text("mine")
    states = {one.path.name: one.state for one in vlmc.check(LLAVA, out)}
    assert states == {"arch.txt": "stale", "README.md": "missing"}
    command = f"vlmc build {LLAVA} --output {out}"
    assert {one.command for one in vlmc.check(LLAVA, out)} == {command}
    vlmc.build(LLAVA, out)
    document = json.loads((out / NAME).read_text(encoding="utf-8"))
    document["files"]["old.txt"] = {"sha256": "0" * 64, "size": 0}
    (out / NAME).write_text(json.dumps(document), encoding="utf-8")
    (out / "old.txt").touch()
    states = {one.path.name: one.state for one in vlmc.check(LLAVA, out)}
    assert states == {NAME: "stale", "old.txt": "extra"}
    (out / NAME).write_text("{", encoding="utf-8")
    assert {one.path.name: one.state for one in vlmc.check(LLAVA, out)} == {NAME: "stale"}


def test_check_accepts_weights_that_are_there_and_misses_those_that_are_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain_build(LLAVA, out, mini=True)
    assert plain_check(LLAVA, out, mini=True) == []
    (out / "weights" / "model.safetensors").unlink()
    (missing,) = plain_check(LLAVA, out, mini=True)
    assert (missing.path, missing.state) == (out / "weights" / "model.safetensors", "missing")


# -- the manifest ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_a_manifest_of_garbage_is_told_so(data: bytes) -> None:
    with pytest.raises(UnreadableManifest, match=r"^x is not a manifest that vlmc wrote: "):
        Manifest.parse(data, Path("x"))


@settings(deadline=None)
@given(st.data())
def test_a_damaged_manifest_is_told_so_or_read(data: st.DataObject) -> None:
    text = bytearray(_manifest().text().encode())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UnreadableManifest):
        Manifest.parse(bytes(text), Path("x"))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a//b", "./a", "a\\b", "a\0b"])
def test_a_manifest_cannot_name_files_elsewhere(name: str) -> None:
    document = _manifest().to_json()
    document["files"][name] = {"sha256": "0" * 64, "size": 0}
    with pytest.raises(UnreadableManifest, match="not a relative path inside the build"):
        Manifest.parse(json.dumps(document).encode(), Path("x"))


def test_a_manifest_of_a_newer_vlmc_is_told_so() -> None:
    document = {**_manifest().to_json(), "schema": 2, "more": 1}
    with pytest.raises(UnreadableManifest, match="a newer vlmc wrote it"):
        Manifest.parse(json.dumps(document).encode(), Path("x"))


def test_a_manifest_survives_its_own_text() -> None:
    manifest = _manifest()
    assert Manifest.parse(manifest.text().encode(), Path("x")) == manifest


def _manifest() -> Manifest:
    from vlmc.emit.record import File, Status

    statuses = {
        "spec.resolved.yaml": Status(status="built", files=("spec.resolved.yaml",)),
        "weights": Status(status="deferred", reason="none", command="vlmc"),
    }
    return Manifest.of(_llava(), {"spec.resolved.yaml": File.of(b"1")}, statuses)


# -- the Python API --------------------------------------------------------------------------------


def test_every_fault_of_a_file_comes_in_one_exception(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "encoder: {preset: clip-vit-l-14-336, patch_size: 13}\nlanguage: vicuna-7b-v1.5\n"
        "adapter: {kind: mlp, layer: 2}\ntoken_budget: {text: 5000}\ncolour: red\n"
    )
    with pytest.raises(SpecError) as raised:
        vlmc.load_spec(file)
    codes = [diagnostic.code for diagnostic in raised.value.diagnostics]
    assert {"VLMC010", "VLMC105", "VLMC130"} <= set(codes) or codes.count("VLMC010") == 2


def test_the_package_offers_what_it_lists() -> None:
    for name in vlmc.__all__:
        assert getattr(vlmc, name) is not None
    assert set(vlmc.__all__) <= set(dir(vlmc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vlmc.nothing


def test_no_stage_has_the_name_of_a_function() -> None:
    """A package `vlmc.build` would take the place of the function once it is imported."""
    for name in vlmc.__all__:
        assert find_spec(f"vlmc.{name}") is None, name


def test_there_is_no_such_spec(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        vlmc.build(tmp_path / "none.yaml")
    with pytest.raises(EnvironmentFault, match="is not a build of vlmc"):
        vlmc.build(tmp_path)
