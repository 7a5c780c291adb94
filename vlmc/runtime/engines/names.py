"""Every engine by its name: its artifact's, then the number format of quantised graphs."""

from __future__ import annotations

from typing import Literal, get_args

from vlmc.diagnostics.faults import UsageError

EngineName = Literal["eager", "compile", "aoti", "onnx", "onnx-int8", "onnx-int4"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


def check_engine(name: str) -> None:
    """Raises UsageError where there is no such engine."""
    if name not in ENGINES:
        raise UsageError(f"--engine {name}: {', '.join(ENGINES)} is expected")
