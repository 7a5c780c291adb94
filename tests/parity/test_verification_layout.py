"""The graphs under transformers.js' names are executed as that client feeds them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import onnx
import pytest

import vlmc
from vlmc import pipeline
from vlmc.emit import room
from vlmc.emit.artifact import unheard
from vlmc.emit.manifest import MEASURED, Manifest
from vlmc.emit.options import Options
from vlmc.emit.verify import Unsound, verify
from vlmc.emit.verify.record import Verification

ONNX: Any = onnx
LLAVA = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
ENGINE = "transformers.js"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layout") / "out"
    options = Options(layout=ENGINE, quantize="int8")
    vlmc.build(LLAVA, folder, mini=True, artifacts=["onnx"], options=options)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The build, to be broken: what were two names of one file are two files."""
    folder = tmp_path / "out"
    shutil.copytree(built, folder)
    return folder


def measured(folder: Path, **options: Any) -> Verification:
    plan = pipeline.plan(folder, folder, (), False, **options)
    return verify(plan, folder, Manifest.read(folder), {})


def test_it_is_executed_before_a_build_stands(built: Path) -> None:
    known = Verification.parse((built / MEASURED).read_bytes())
    assert known is not None
    assert [*known.engines] == ["onnx", "onnx-int8", ENGINE, f"{ENGINE}-int8"]
    found, usual = known.engines[ENGINE], known.engines["onnx"]
    assert (found.artifact, found.tolerance, found.tokens) == (ENGINE, 1e-4, 1.0)
    assert 0 < found.max_relative < 1e-5
    assert [(case.case, case.graph) for case in found.cases] == [
        (case.case, case.graph) for case in usual.cases
    ]
    quantised = known.engines[f"{ENGINE}-int8"]
    assert quantised.judged == "mean_relative"
    assert 0.001 < quantised.error < quantised.tolerance


def test_weights_of_its_own_that_are_wrong(copy: Path) -> None:
    path = copy / ENGINE / "onnx" / "weights" / "model.safetensors"
    data = bytearray(path.read_bytes())
    head = 8 + int.from_bytes(data[:8], "little")
    data[head + 3 :: 4] = bytes(byte ^ 0x80 for byte in data[head + 3 :: 4])
    path.write_bytes(data)
    found = measured(copy).engines
    assert not found[ENGINE].sound
    assert found["onnx"].sound, "which has weights of its own here"


@pytest.mark.parametrize(
    "name", ["image_features", "inputs_embeds", "past_key_values.0.key", "present.1.value"]
)
def test_a_name_that_the_client_does_not_know(copy: Path, name: str) -> None:
    for path in (copy / ENGINE / "onnx").glob("*.onnx"):
        model = cast("onnx.ModelProto", ONNX.load(str(path), load_external_data=False))
        for value in (*model.graph.input, *model.graph.output):
            if value.name == name:
                value.name = f"{name}.other"
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [f"{name}.other" if one == name else one for one in names]
        ONNX.save(model, str(path))
    with pytest.raises(Unsound, match=r"transformers.js/ cannot be executed by the engine tr"):
        measured(copy)


def test_rows_that_the_client_does_not_find(copy: Path) -> None:
    """It makes an empty cache of as many rows as it asks for only under `batch_size`."""
    path = copy / ENGINE / "onnx" / "decoder_model_merged.onnx"
    model = cast("onnx.ModelProto", ONNX.load(str(path), load_external_data=False))
    for value in model.graph.input:
        for extent in value.type.tensor_type.shape.dim:
            if extent.dim_param == "batch_size":
                extent.dim_param = "rows"
    ONNX.save(model, str(path))
    with pytest.raises(Unsound, match=r"engine transformers.js"):
        measured(copy)


def test_another_placeholder_in_the_configuration(copy: Path) -> None:
    path = copy / ENGINE / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "image_token_index": config["image_token_index"] - 1}))
    with pytest.raises(Unsound, match=r"engine transformers.js"):
        measured(copy)


def test_a_second_name_of_other_bytes(copy: Path) -> None:
    path = copy / ENGINE / "onnx" / "decoder_model_merged_quantized.onnx"
    shutil.copyfile(path.with_name("decoder_model_merged.onnx"), path)
    with pytest.raises(Unsound, match=r"decoder_model_merged_quantized.onnx is not the same as"):
        measured(copy)


def test_what_does_not_fit_is_measured_on_its_twin(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 0)
    found = measured(built, note=unheard).engines
    for name in (ENGINE, f"{ENGINE}-int8"):
        assert (found[name].measured, found[name].sound) == ("twin", True)


def test_quantised_graphs_are_kept_for_builds_of_the_same_weights(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: object, **options: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr("vlmc.emit.onnx.write", never)
    asked: Any = {"mini": True, "artifacts": ["onnx"], "options": Options(quantize="int8")}
    vlmc.build(LLAVA, tmp_path / "same", **asked)
    for path in (built / "onnx").glob("*.*"):
        assert (tmp_path / "same" / "onnx" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(AssertionError, match="written again"):
        vlmc.build(LLAVA, tmp_path / "other", seed=1, **asked)
