"""`vlmc bench --calibrate`: what it measures is a device file. Figures differ by machine."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from vlmc.analysis.operators import Memory
from vlmc.calibration import calibrate, calls, curves, timing
from vlmc.commands import app
from vlmc.diagnostics import EnvironmentFault
from vlmc.hardware import device


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that are measured in a moment."""
    monkeypatch.setattr(curves, "SIDES", (16, 32, 64))
    monkeypatch.setattr(curves, "SIZES", (2**12, 2**16, 2**20))
    monkeypatch.setattr(curves, "LENGTHS", (16, 32))
    monkeypatch.setattr(curves, "WIDTHS", (32, 64))
    monkeypatch.setattr(curves, "PARAMETERS", (2**8, 2**12))
    monkeypatch.setattr(curves, "AROUND", 2**20)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 1e-4)


def test_a_calibration_is_a_device_file(tmp_path: Path) -> None:
    path = tmp_path / "host.yaml"
    result = CliRunner().invoke(app, ["bench", "--calibrate", "--output", str(path)])
    assert result.exit_code == 0, result.output
    card = device(str(path))
    found = card.efficiency
    assert found.measured
    assert f"on cpu, {torch.get_num_threads()} threads" in found.source
    assert [flops for flops, _ in found.matmul] == pytest.approx(
        [2 * side**3 for side in (16, 32, 64)], rel=1e-3
    )
    assert [size for size, _ in found.memory] == pytest.approx(
        [3 * 2**power for power in (12, 16, 20)], rel=1e-3
    )
    assert set(card.formats) == {"fp32", "bf16"}
    assert max(share for _, share in found.matmul) == 1
    assert max(share for _, share in found.formats["bf16"]) == 1
    assert card.seconds(1e9, 0, "fp32") > card.seconds(1e6, 0, "fp32") > 0
    assert card.memory_gb > 1
    assert all(one < two for (one, _), (two, _) in pairwise(found.memory))
    assert found.attention is not None
    assert found.attention_backward is not None
    products = [4 * 8 * 2 * length**2 * 64 for length in (16, 32)]
    assert [flops for flops, _ in found.attention] == pytest.approx(
        [2 * one for one in products], rel=1e-3
    )
    assert [flops for flops, _ in found.attention_backward] == pytest.approx(
        [5 * one for one in products], rel=1e-3
    )
    assert found.functions is not None
    assert [size for size, _ in found.functions] == pytest.approx(
        [2 * 2**power for power in (12, 16, 20)], rel=1e-3
    )
    assert found.adamw is not None
    assert [size for size, _ in found.adamw] == [2**8, 2**12]
    assert found.serving is not None
    assert sorted(found.serving.rows) == [1, 2, 8, 32, 128]
    assert [size for size, _ in found.serving.rows[8]] == [
        4 * side * (side + 16) for side in (32, 64)
    ]
    caches = [4 * 8 * 64 * 4 * length for length in (1, 16, 32)]
    token = caches[0]
    assert [size for size, _ in found.serving.cache] == pytest.approx(
        [2 * size + 2 * token for size in caches], rel=1e-3
    )
    assert [size for size, _ in found.serving.query] == pytest.approx(
        [2 * size + 4 * token for size in caches], rel=1e-3
    )


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
    calibrate(threads=2)
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
        calibrate("cuda")


def test_outputs_stay_alive_while_others_are_made() -> None:
    alive: set[int] = set()
    most = 0

    class Output:
        def __init__(self) -> None:
            nonlocal most
            alive.add(id(self))
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    timing.seconds(lambda _: Output(), "cpu", held=5)
    assert most == 6
    assert not alive


def test_work_is_told_its_turn() -> None:
    turns: list[int] = []
    timing.seconds(turns.append, "cpu", held=3)
    assert turns == list(range(len(turns)))
    assert len(turns) > 4 + timing.REPEATS


def test_more_work_is_not_said_to_take_less_time() -> None:
    """Something else ran while the second size was measured."""
    rates = ((1.0, 1.0), (2.0, 0.5), (4.0, 2.0))
    found = calibrate(threads=1)
    told = replace(found, moving=rates, bandwidth=1.0).to_json()["efficiency"]["memory"]
    assert told == [[1.0, 1.0], [2.0, 1.0], [4.0, 2.0]]


def test_calls_of_operators_are_counted_without_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a step over the operators in it, as the analysis of designs counts them."""
    monkeypatch.setattr(calls, "seconds", lambda *_: 1.0)
    operators = 1 / calls.call_seconds()[0]
    monkeypatch.setattr(Memory, "is_view", lambda *_: False)
    with_views = 1 / calls.call_seconds()[0]
    assert 100 < operators < with_views


def test_what_checkpointing_adds_is_over_what_runs_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of 10 seconds that takes 19 with checkpointing: 4 of the 5 calls of the forward pass,
    0.8 seconds each, run again. In inference mode each takes half of that."""
    taken = iter((10.0, 19.0, 4.0, 2.0))
    counts = {"step": 20, "again": 24, "forward": 5}
    monkeypatch.setattr(calls, "seconds", lambda *_: next(taken))
    monkeypatch.setattr(calls, "_count", lambda work: counts[work.__name__])
    assert calls.call_seconds() == (10 / 20, pytest.approx(9 / 4 - 0.8), 2 / 5)


def test_an_update_is_timed_by_the_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates are of one parameter, not of all that are updated together."""
    found: list[int] = []

    def taken(work: Any, *_: object) -> float:
        optimiser = work.__defaults__[0]
        found.append(sum(len(group["params"]) for group in optimiser.param_groups))
        return float(found[-1])

    monkeypatch.setattr(curves, "seconds", taken)
    bench = curves.Bench("cpu", 2**30, lambda *_: None)
    assert bench.adamw() == ((2**8, 2**8), (2**12, 2**12))
    assert found[0] > found[1] > 1
