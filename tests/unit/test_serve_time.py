"""benchmarks/serve_time.py: what it compares. Figures differ by machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_modules import CARD, loaded


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = loaded(monkeypatch, "serve_time")
    sizes = sys.modules["step_time"]
    small = sizes.Size(width=64, layers=2, seeing=64, batch=1, text=8)
    monkeypatch.setattr(sizes, "SIZES", dict.fromkeys(sizes.SIZES, small))
    monkeypatch.setattr(module, "ROUNDS", 1)
    return module


@pytest.mark.parametrize(
    ("system", "figures"), [("blip2-flan-t5", 9), ("idefics-9b", 9), ("visualbert", 6)]
)
def test_each_figure_is_a_line(
    system: str, figures: int, benchmark: ModuleType, tmp_path: Path
) -> None:
    card = tmp_path / "mine.yaml"
    card.write_text(CARD, encoding="utf-8")
    said: list[str] = []
    threads = str(torch.get_num_threads())
    words = [system, "--device", str(card), "--threads", threads]
    assert benchmark.main(words, said.append) in (0, 1)
    lines = [line for line in said if line.startswith(f"{system:14} ")]
    assert sum("%" in line for line in lines) == figures
    assert sum("KV cache" in line for line in lines) == 3
    assert said[-1].startswith(f"all: {figures} figures off by")
    assert said[-1].endswith("; 0 KV caches of other sizes")
