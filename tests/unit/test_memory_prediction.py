"""Predicted against tracked: some of the steps of benchmarks/memory_prediction.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = ROOT / "benchmarks" / "memory_prediction.py"
    spec = importlib.util.spec_from_file_location("memory_prediction", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["memory_prediction"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


STEPS: list[dict[str, Any]] = [
    {"system": "llava-1.5", "images": 2},
    {"system": "llava-1.5", "layers": 9, "trained": "all", "checkpointing": "full"},
    {"system": "visualbert", "layers": 8, "text": 96, "trained": "all"},
    {"system": "visualbert", "layers": 7, "checkpointing": "selective", "precision": "bf16"},
    {"system": "idefics-9b", "layers": 7, "trained": "spec", "checkpointing": "full"},
    {"system": "blip2", "layers": 6, "trained": "adapter"},
    {"system": "blip2-flan-t5", "trained": "all"},
    {"system": "flamingo-3b", "images": 2},
    {"system": "visualbert", "layers": 4, "trained": "all", "zero": 2},
    {"system": "visualbert", "layers": 5, "text": 64, "zero": 3},
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step['system']}-{len(step)}")
def test_peak_memory_and_flops_are_as_torch_tracks_them(
    benchmark: ModuleType, step: dict[str, Any]
) -> None:
    result = benchmark.run(benchmark.Case(**step))
    print(result)
    assert result.flops == result.counted
    assert abs(result.error) <= benchmark.MEDIAN
