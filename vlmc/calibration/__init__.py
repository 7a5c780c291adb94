"""Measures the present device: what `vlmc bench --calibrate` writes as a device file.

Operators run as a model runs them, in eager mode, with an output of their own each time that is
kept for a while, so that dispatch, allocation and caches are in the curves.
"""

from __future__ import annotations

import os
import platform

import torch

from vlmc.calibration.calls import call_seconds
from vlmc.calibration.curves import FORMATS, ROWS, Bench, Progress
from vlmc.calibration.measured import Measured, Served
from vlmc.diagnostics import EnvironmentFault
from vlmc.hardware.host import free_memory
from vlmc.hardware.processor import processor_says

__all__ = ["Measured", "calibrate"]


def calibrate(
    device: str = "cpu", *, threads: int | None = None, progress: Progress | None = None
) -> Measured:
    """Measures `device` (cpu or cuda): the bandwidth of its memory, and the rates of products,
    attention, functions and updates over their sizes. On a processor `threads` of torch work; None
    is as many as torch takes.

    Raises EnvironmentFault where this machine has no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("this machine has no CUDA device that torch could use")
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return _measured(device, progress or _silent)
    finally:
        torch.set_num_threads(before)


def _measured(device: str, tell: Progress) -> Measured:
    about, memory, room = _identity(device)
    bench = Bench(device, room, tell)
    moving = bench.memory()
    bandwidth = max(bench.bandwidth(), moving[-1][1])
    usual = "bf16" if device == "cuda" else "fp32"
    products = {name: bench.products(name) for name in _formats(device)}
    forward, backward = bench.attention(FORMATS[usual])
    # On a GPU kernels are queued while others run.
    call, again, answering = (0.0, 0.0, 0.0) if device == "cuda" else call_seconds()
    least = bench.least_seconds()
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    return Measured(
        about=about,
        source=f"measured by vlmc bench --calibrate on {device}{threads}, torch "
        f"{torch.__version__.partition('+')[0]}",
        usual=usual,
        memory=memory,
        bandwidth=bandwidth,
        moving=moving,
        functions=bench.functions(),
        products=products,
        attention=forward,
        attention_backward=backward,
        adamw=bench.adamw(),
        call_seconds=max(0.0, call - least),
        again_seconds=again,
        serving=_served(bench, FORMATS[usual], max(0.0, answering - least)),
    )


def _served(bench: Bench, number: torch.dtype, call: float) -> Served:
    with torch.inference_mode():
        adding, reading = bench.cache(number)
        return Served(
            moving=bench.memory(kept=False),
            functions=bench.functions(kept=False),
            rows={count: bench.rows(count, number) for count in ROWS},
            cache=adding,
            query=reading,
            call_seconds=call,
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


def _silent(stage: str, done: int = 0, total: int = 0) -> None:
    return None
