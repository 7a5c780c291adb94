"""Rules about the target: is it known, can it compute so, does the design fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmc.components.contract import Parameters
from vlmc.diagnostics import Path, Problem
from vlmc.diagnostics.nearest import listing, suggestion
from vlmc.hardware import BadDevice, Device, device, is_file, names
from vlmc.ir.training import TRAINED_IN
from vlmc.resolver.flow import Flow
from vlmc.resolver.memory import lower_bound
from vlmc.spec.document import Target

MOST = 2**40
"""Numbers in one block or table from which on no machine holds it."""

STORED_ONLY = ("int4", "int8", "fp8")
"""Formats that weights may be stored in on any device, to be computed in another."""


def known_device(flow: Flow) -> Device | None:
    """The target's device; None where there is no target or no such device."""
    if flow.target is None:
        return None
    try:
        return device(flow.target.hardware)
    except (KeyError, BadDevice):
        return None


def tensors_have_a_size(flow: Flow) -> Iterator[Problem]:
    """Each tensor is one that a machine could hold, so that what validates can be built."""
    seen, visual, language = flow.seen, flow.visual, flow.language
    if language is None or seen is None or visual is None or flow.adapter is None:
        return
    counts: dict[str, Parameters] = {"language": language.parameters()}
    counts["adapter"] = flow.adapter.parameters(seen, language)
    if flow.encoder is not None:
        counts["encoder"] = flow.encoder.parameters()
    if flow.fusion is not None and language.architecture in flow.fusion.architectures:
        counts["fusion"] = flow.fusion.parameters(visual, language)
    if flow.head is not None and language.architecture in flow.head.architectures:
        counts["head"] = flow.head.parameters(language)
    for part, by_child in counts.items():
        for child, number in by_child.items():
            # A child of many blocks is judged by what one of them has on average.
            each = number // (_depth(flow, part) if child.endswith(("layers", "blocks")) else 1)
            if each >= MOST:
                yield Problem(
                    code="VLMC012",
                    path=(part,),
                    message=f"the {part}'s `{child}` is too large to be built",
                    expected=f"fewer than {MOST:,} numbers in one block or table",
                    got=f"{each:,}",
                    help="a smaller width, vocabulary, context or image size",
                    at_key=True,
                )


def _depth(flow: Flow, part: str) -> int:
    owner = flow.language if part == "fusion" else getattr(flow, part)
    return getattr(owner, "layers", None) or sum(getattr(owner, "depths", (1,)))


def known_hardware(flow: Flow) -> Iterator[Problem]:
    """The target names a device that vlmc has figures for, or a file with such figures."""
    if flow.target is None or known_device(flow) is not None:
        return
    word = flow.target.hardware
    if is_file(word):
        yield from _bad_file(word)
        return
    near = suggestion(word, names())
    yield Problem(
        code="VLMC150",
        path=("target", "hardware"),
        message=f"unknown device `{word[:60]}`",
        expected=listing(word, names()),
        got=word[:60],
        help=f"hardware: {near}" if near else "add a file to vlmc/hardware/devices",
    )


def _bad_file(word: str) -> Iterator[Problem]:
    try:
        device(word)
    except BadDevice as error:
        yield Problem(
            code="VLMC156",
            path=("target", "hardware"),
            message="the device file cannot be used",
            expected="a file as `vlmc bench --calibrate` writes it, or the name of a device",
            got=str(error)[:300],
            help="vlmc bench --calibrate --output device.yaml",
        )


def precision_supported(flow: Flow) -> Iterator[Problem]:
    """The device computes in the format that is asked for."""
    card, target = known_device(flow), flow.target
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
        trains = target.workload.mode == "train"
        other = "fp16" if "fp16" in card.formats and not trains else "fp32"
        yield Problem(
            code="VLMC151",
            path=("target", "precision", part) if part else ("target", "precision"),
            message=f"{card.name} does not compute in {name}",
            expected=", ".join(card.formats),
            got=name,
            help=f"{part or 'precision'}: {other}",
        )


def trains_in_format(flow: Flow) -> Iterator[Problem]:
    """Training computes in a format in which its gradients neither overflow nor vanish."""
    card, target = known_device(flow), flow.target
    if card is None or target is None or target.workload.mode != "train":
        return
    name = target.precision_of("language")
    if name in (*TRAINED_IN, "tf32") or name not in card.formats:  # that is VLMC151
        return
    path = computed_in(target)
    trained = [one for one in TRAINED_IN if one in card.formats]
    yield Problem(
        code="VLMC012",
        path=path,
        message=f"nothing is trained in {name}, which overflows",
        expected=", ".join(trained),
        got=name,
        help=f"{path[-1]}: {trained[0]}",
    )


def computed_in(target: Target) -> Path:
    """Where a target says what its language model computes in."""
    if isinstance(target.precision, str):
        return ("target", "precision")
    return ("target", "precision", "language" if target.precision.language else "default")


def fits_memory(flow: Flow) -> Iterator[Problem]:
    """Weights, key/value cache and the smallest working set fit into the devices' memory.

    A lower bound: what it refuses cannot run, what it lets through may still not fit.
    """
    card, target = known_device(flow), flow.target
    need = lower_bound(flow)
    if card is None or target is None or need is None or target.count == "auto":
        return
    have = card.memory_bytes * target.count
    if need.total <= have:
        return
    devices = -(-need.total // card.memory_bytes)
    yield Problem(
        code="VLMC152",
        path=("target", "count"),
        related=(("target", "hardware"),),
        message=f"the design cannot fit into {target.count} x {card.name}",
        expected=f"at most {target.count} x {card.memory_gb:g} GB = {have / 1e9:,.1f} GB",
        got=f"at least {need}",
        help=f"count: {devices}" if devices < 2**31 else "ask for a smaller workload",
    )
