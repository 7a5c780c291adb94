"""Measures the present device: what `vlmc bench --calibrate` writes as a device file.

Operators run as a model runs them, in eager mode and with an output of their own each time, so that
dispatch, allocation and caches are in the curves.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vlmc.diagnostics import EnvironmentFault
from vlmc.hardware.host import free_memory
from vlmc.hardware.processor import processor_says

REPEATS = 7
LEAST_SECONDS = 2e-3
"""Of one repetition: shorter work is done several times in it."""
LONGEST_SECONDS = 1.0
"""Of one product: larger sizes than the first that takes as long are left out."""
SIDES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
SIZES = tuple(2**power for power in range(12, 34, 2))
"""Bytes of a tensor."""
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CURVE_POINTS = 5
"""Sizes that must have been measured for a curve."""


class Progress(Protocol):
    """Told what is being measured."""

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The present device. Rates in operations and bytes a second."""

    about: str
    source: str
    memory: int
    bandwidth: float
    """Of reading a tensor that no cache holds."""
    moving: tuple[tuple[float, float], ...]
    """Bytes that an addition reads and writes, and the rate at which it does."""
    products: dict[str, tuple[tuple[float, float], ...]] = field(
        default_factory=dict[str, tuple[tuple[float, float], ...]]
    )
    """By number format: FLOPs of a product, and the rate."""

    def to_json(self) -> dict[str, Any]:
        """The device file as a mapping."""
        peaks = {name: max(rate for _, rate in curve) for name, curve in self.products.items()}
        curves = {
            name: [[_round(flops), _round(rate / peaks[name])] for flops, rate in curve]
            for name, curve in self.products.items()
        }
        cuda = "cuda" in self.source
        usual = "bf16" if cuda else "fp32"
        return {
            "about": self.about,
            "source": self.source,
            "cuda": cuda,
            "memory_gb": _round(self.memory / 1e9),
            "memory_gbps": _round(self.bandwidth / 1e9),
            "tflops": {name: _round(peak / 1e12) for name, peak in peaks.items()},
            "efficiency": {
                "matmul": curves.pop(usual),
                "formats": curves,
                "memory": [[_round(b), _round(rate / self.bandwidth)] for b, rate in self.moving],
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


def calibrate(
    device: str = "cpu", *, threads: int | None = None, progress: Progress | None = None
) -> Measured:
    """Measures `device` (cpu or cuda): the bandwidth of its memory and its products' rates over
    their sizes. On a processor `threads` of torch work; None is as many as torch takes.

    Raises EnvironmentFault where this machine has no such device.
    """
    tell = progress or _silent
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("this machine has no CUDA device that torch could use")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            return _measured(device, tell)
    finally:
        torch.set_num_threads(before)


def _measured(device: str, tell: Progress) -> Measured:
    about, memory, room = _identity(device)
    bandwidth, moving = _memory(device, room, tell)
    products = {name: _products(device, name, room, tell) for name in _formats(device)}
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    return Measured(
        about=about,
        source=f"measured by vlmc bench --calibrate on {device}{threads}, torch "
        f"{torch.__version__.partition('+')[0]}",
        memory=memory,
        bandwidth=bandwidth,
        moving=moving,
        products=products,
    )


def _formats(device: str) -> tuple[str, ...]:
    return ("fp32", "bf16", "fp16") if device == "cuda" else ("fp32", "bf16")


def _identity(device: str) -> tuple[str, int, int]:
    """What the device is called, its memory, and how much of that may be taken. Bytes."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info(0)
        return torch.cuda.get_device_name(0), int(total), int(free)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _processor(), total, free_memory()


def _processor() -> str:
    found = processor_says("model name") or platform.processor() or platform.machine()
    return found or "a processor"


def _memory(
    device: str, room: int, tell: Progress
) -> tuple[float, tuple[tuple[float, float], ...]]:
    """The rate of reading the largest tensor, and of adding two, by the bytes that are moved."""
    moving: list[tuple[float, float]] = []
    bandwidth = 0.0
    sizes = _bounded(SIZES, room // 8, 2**28 if device == "cpu" else 2**32)
    for done, size in enumerate(sizes):
        tell("memory", done, len(sizes))
        one, two = (torch.ones(size // 4, device=device) for _ in range(2))
        moved = 3 * size
        moving.append((moved, moved / _seconds(lambda a=one, b=two: a + b, device)))
        if size == sizes[-1]:
            bandwidth = size / _seconds(one.sum, device)
            if device == "cuda":  # a reduction is no measure there; a copy reads and writes
                bandwidth = 2 * size / _seconds(one.clone, device)
    return max(bandwidth, moving[-1][1]), tuple(moving)


def _products(device: str, name: str, room: int, tell: Progress) -> tuple[tuple[float, float], ...]:
    """The rate of a product of two square matrices, by its FLOPs."""
    curve: list[tuple[float, float]] = []
    for done, side in enumerate(SIDES):
        tell(f"products in {name}", done, len(SIDES))
        if 3 * side * side * 4 > room // 2:
            break
        one, two = (torch.randn(side, side, device=device).to(FORMATS[name]) for _ in range(2))
        flops = 2.0 * side**3
        seconds = _seconds(lambda a=one, b=two: a @ b, device)
        curve.append((flops, flops / seconds))
        if seconds * 8 > LONGEST_SECONDS and len(curve) >= CURVE_POINTS:
            break
    return tuple(curve)


def _bounded(sizes: Iterable[int], *most: int) -> list[int]:
    """Sizes up to the least of `most`, the smallest in any case."""
    every = list(sizes)
    return [size for size in every if size <= min(most)] or every[:1]


def _seconds(work: Callable[[], object], device: str) -> float:
    """The best time of `work`, after it ran once unmeasured: what else the machine does only adds
    to it."""
    work()
    once = _timed(work, 1, device)
    rounds = max(1, int(LEAST_SECONDS / max(once, 1e-9)))
    return min(_timed(work, rounds, device) for _ in range(REPEATS))


def _timed(work: Callable[[], object], rounds: int, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(rounds):
        work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / rounds


def _round(value: float) -> float:
    """Four digits: no measurement is better."""
    return float(f"{value:.4g}")


def _written(value: object) -> str:
    """A value in YAML's flow style. JSON is that, with every text quoted."""
    return json.dumps(value, ensure_ascii=False)


def _silent(stage: str, done: int = 0, total: int = 0) -> None:
    return None
