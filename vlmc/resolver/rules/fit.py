"""Rules about the target: is it known, can it compute so, does the design fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmc.diagnostics import Problem
from vlmc.diagnostics.nearest import listing, suggestion
from vlmc.hardware import Device, device, names
from vlmc.resolver.flow import Flow
from vlmc.resolver.memory import lower_bound

STORED_ONLY = ("int4", "int8", "fp8")
"""Formats that weights may be stored in on any device, to be computed in another."""


def _device(flow: Flow) -> Device | None:
    if flow.target is None or flow.target.hardware not in names():
        return None
    return device(flow.target.hardware)


def known_hardware(flow: Flow) -> Iterator[Problem]:
    """The target names a device that vlmc has figures for."""
    if flow.target is None or _device(flow) is not None:
        return
    word = flow.target.hardware
    near = suggestion(word, names())
    yield Problem(
        code="VLMC150",
        path=("target", "hardware"),
        message=f"unknown device `{word[:60]}`",
        expected=listing(word, names()),
        got=word[:60],
        help=f"hardware: {near}" if near else "add a file to vlmc/hardware/devices",
    )


def precision_supported(flow: Flow) -> Iterator[Problem]:
    """The device computes in the format that is asked for."""
    card, target = _device(flow), flow.target
    if card is None or target is None:
        return
    by_part: dict[str, Any] = (
        {"": target.precision}
        if isinstance(target.precision, str)
        else target.precision.model_dump(exclude_none=True)
    )
    for part, name in by_part.items():
        if name in card.formats or (name in STORED_ONLY and target.workload.mode == "serve"):
            continue
        yield Problem(
            code="VLMC151",
            path=("target", "precision", part) if part else ("target", "precision"),
            message=f"{card.name} does not compute in {name}",
            expected=", ".join(card.formats),
            got=name,
            help=f"{part or 'precision'}: {'fp16' if 'fp16' in card.formats else 'fp32'}",
        )


def fits_memory(flow: Flow) -> Iterator[Problem]:
    """Weights, key/value cache and the smallest working set fit into the devices' memory.

    A lower bound: what it refuses cannot run, what it lets through may still not fit.
    """
    card, target = _device(flow), flow.target
    need = lower_bound(flow)
    if card is None or target is None or need is None:
        return
    have = card.memory_bytes * target.count
    if need.total <= have:
        return
    devices = -(-need.total // card.memory_bytes)
    yield Problem(
        code="VLMC152",
        path=("target", "count") if target.count > 1 else ("target", "hardware"),
        message=f"the design cannot fit into {target.count} x {card.name}",
        expected=f"at most {target.count} x {card.memory_gb:g} GB = {have / 1e9:,.1f} GB",
        got=f"at least {need}",
        help=f"count: {devices}",
    )
