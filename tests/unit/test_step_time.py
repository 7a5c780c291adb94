"""benchmarks/step_time.py: what it compares. Figures differ by machine."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_modules import CARD, loaded


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = loaded(monkeypatch, "step_time")
    small = module.Size(width=64, layers=1, seeing=64, batch=1, text=8)
    monkeypatch.setattr(module, "SIZES", dict.fromkeys(module.SIZES, small))
    monkeypatch.setattr(module, "ROUNDS", 1)
    return module


def test_each_step_is_a_line(benchmark: ModuleType, tmp_path: Path) -> None:
    card = tmp_path / "mine.yaml"
    card.write_text(CARD, encoding="utf-8")
    said: list[str] = []
    threads = str(torch.get_num_threads())
    words = ["visualbert", "--device", str(card), "--threads", threads]
    assert benchmark.main(words, said.append) in (0, 1)
    assert sum(line.startswith("visualbert     trained:") for line in said) == 4
    assert said[-1].startswith("all: 4 steps: time off by")


@pytest.mark.parametrize("kept", ["none", "full"])
def test_a_case_trains_what_it_says(benchmark: ModuleType, kept: str) -> None:
    runner = benchmark.Runner.of("llava-1.5")
    everything = sum(one.numel() for one in runner.model.parameters())
    trained = {}
    for parts in ("all", "spec"):
        runner.prepare(benchmark.Case(system="llava-1.5", trained=parts, checkpointing=kept))()
        found = [one for one in runner.model.parameters() if one.requires_grad]
        trained[parts] = sum(one.numel() for one in found)
        assert all((one.grad is not None) <= one.requires_grad for one in runner.model.parameters())
    assert trained["spec"] < trained["all"] == everything


def test_more_to_do_is_predicted_to_take_longer(benchmark: ModuleType, tmp_path: Path) -> None:
    from vlmc.hardware import device

    path = tmp_path / "mine.yaml"
    path.write_text(CARD, encoding="utf-8")
    every = list(benchmark.cases(["llava-1.5"]))
    runners = {"llava-1.5": benchmark.Runner.of("llava-1.5")}
    read = benchmark.reports(runners, every)
    arch = runners["llava-1.5"].arch
    taken = {
        (one.trained, one.checkpointing): benchmark.predicted(
            one, arch, read[one.system, one.trained], device(str(path))
        )
        for one in every
    }
    assert 0 < taken["spec", "none"] < taken["all", "none"] < taken["all", "full"]
    assert taken["spec", "none"] < taken["spec", "full"]
