"""`vlmc bench --calibrate`: what it measures is a device file. Figures differ by machine."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from vlmc import calibration
from vlmc.commands import app
from vlmc.diagnostics import EnvironmentFault
from vlmc.hardware import device


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are measured in a moment."""
    monkeypatch.setattr(calibration, "SIDES", (16, 32, 64))
    monkeypatch.setattr(calibration, "SIZES", (2**12, 2**16, 2**20))
    monkeypatch.setattr(calibration, "LEAST_SECONDS", 1e-4)


def test_a_calibration_is_a_device_file(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    result = CliRunner().invoke(app, ["bench", "--calibrate", "--output", str(path)])
    assert result.exit_code == 0, result.output
    card = device(str(path))
    curves = card.efficiency
    assert curves.measured
    assert f"on cpu, {torch.get_num_threads()} threads" in curves.source
    assert [flops for flops, _ in curves.matmul] == pytest.approx(
        [2 * side**3 for side in (16, 32, 64)], rel=1e-3
    )
    assert [size for size, _ in curves.memory] == pytest.approx(
        [3 * 2**power for power in (12, 16, 20)], rel=1e-3
    )
    assert set(card.formats) == {"fp32", "bf16"}
    assert max(share for _, share in curves.matmul) == 1
    assert max(share for _, share in curves.formats["bf16"]) == 1
    assert card.seconds(1e9, 0, "fp32") > card.seconds(1e6, 0, "fp32") > 0
    assert card.memory_gb > 1
    assert all(one < two for (one, _), (two, _) in pairwise(curves.memory))


def test_json_and_file_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    words = ["bench", "--calibrate", "--output", str(path), "--threads", "1", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    said = json.loads(result.output)["device"]
    card = device(str(path))
    assert said["tflops"] == card.tflops
    assert said["memory_gbps"] == card.memory_gbps
    assert "1 threads" in card.efficiency.source


def test_threads_are_as_they_were() -> None:
    before = torch.get_num_threads()
    calibration.calibrate(threads=2)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--calibrate"),
        (["--calibrate", "--output", "no/such/folder/x.yaml"], ".yaml"),
        (["--calibrate", "--output", "x.txt"], ".yaml"),
        (["--calibrate", "--device", "cuda", "--threads", "2"], "--threads"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words])
    assert result.exit_code == 2
    assert said in result.output


def test_no_cuda_device_is_a_fault_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentFault, match="no CUDA device"):
        calibration.calibrate("cuda")
