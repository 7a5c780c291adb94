"""Modules of benchmarks/, for tests of what they compare, and a device for them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
CARD = """about: mine
source: made up
memory_gb: 8
memory_gbps: 20
tflops: {fp32: 0.1}
efficiency: {matmul: [[1e6, 1.0]], memory: [[1e6, 1.0]], measured: false, source: made up}
"""


def loaded(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A benchmark as a module of its own; those that it imports are found."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
