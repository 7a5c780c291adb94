"""What was measured, as a device file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Any

from vlmc.hardware.device import UPDATED

Rates = tuple[tuple[float, float], ...]
"""Sizes of work, and the rate at which it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What was measured with nothing kept."""

    moving: Rates
    functions: Rates
    rows: dict[int, Rates]
    """By rows of a product, bytes that it reads and writes."""
    cache: Rates
    """Bytes that are read and written for a token that comes to a cache."""
    query: Rates
    """Bytes that attention of one query reads and writes."""
    call_seconds: float

    def to_json(self, bandwidth: float) -> dict[str, Any]:
        """That part of the device file."""
        return {
            "memory": _shares(self.moving, bandwidth),
            "functions": _shares(self.functions, bandwidth),
            "rows": {str(count): _shares(curve, bandwidth) for count, curve in self.rows.items()},
            "cache": _shares(self.cache, bandwidth),
            "query": _shares(self.query, bandwidth),
            "call_us": _round(self.call_seconds * 1e6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The present device. Rates in operations and bytes a second."""

    about: str
    source: str
    usual: str
    """The number format of its models: that of `attention`."""
    memory: int
    bandwidth: float
    """Of reading a tensor that no cache holds."""
    moving: Rates
    """Bytes that a subtraction reads and writes."""
    functions: Rates
    """Bytes that functions and norms read and write."""
    products: dict[str, Rates]
    """By number format: FLOPs of a product."""
    attention: Rates
    """FLOPs of a fused attention."""
    attention_backward: Rates
    adamw: Rates
    """Numbers of a parameter, and how many are updated a second."""
    call_seconds: float
    """Of a call of an operator in a model, over what is in the rates."""
    again_seconds: float
    """Of a call that checkpointing runs again, over that."""
    serving: Served

    def to_json(self) -> dict[str, Any]:
        """The device file as a mapping."""
        peaks = {name: max(rate for _, rate in curve) for name, curve in self.products.items()}
        curves = {name: _shares(curve, peaks[name]) for name, curve in self.products.items()}
        return {
            "about": self.about,
            "source": self.source,
            "cuda": "cuda" in self.source,
            "memory_gb": _round(self.memory / 1e9),
            "memory_gbps": _round(self.bandwidth / 1e9),
            "tflops": {name: _round(peak / 1e12) for name, peak in peaks.items()},
            "efficiency": {
                "matmul": curves.pop(self.usual),
                "formats": curves,
                "attention": _shares(self.attention, peaks[self.usual]),
                "attention_backward": _shares(self.attention_backward, peaks[self.usual]),
                "memory": _shares(self.moving, self.bandwidth),
                "functions": _shares(self.functions, self.bandwidth),
                "adamw": _shares(self.adamw, self.bandwidth / UPDATED["adamw"]),
                "call_us": _round(self.call_seconds * 1e6),
                "again_us": _round(self.again_seconds * 1e6),
                "serving": self.serving.to_json(self.bandwidth),
                "measured": True,
                "source": self.source,
            },
        }

    def to_yaml(self) -> str:
        """The text of the device file."""
        data = self.to_json()
        curves: dict[str, Any] = data.pop("efficiency")
        lines = [f"{key}: {_written(value)}" for key, value in data.items()]
        lines.append("efficiency:")
        lines += [f"  {key}: {_written(value)}" for key, value in curves.items()]
        return "\n".join(lines) + "\n"


def _shares(curve: Iterable[tuple[float, float]], peak: float) -> list[list[float]]:
    """Work takes no longer than more of it: where it seems to, something else ran."""
    found: list[list[float]] = []
    least = inf
    for size, rate in reversed(tuple(curve)):
        least = min(least, size / rate)
        found.append([_round(size), _round(size / least / peak)])
    return found[::-1]


def _round(value: float) -> float:
    """Four digits: no measurement is better."""
    return float(f"{value:.4g}")


def _written(value: object) -> str:
    """A value in YAML's flow style. JSON is that, with every text quoted."""
    return json.dumps(value, ensure_ascii=False)
