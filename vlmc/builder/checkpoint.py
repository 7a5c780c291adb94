"""Weights in: a Hugging Face folder (config.json + safetensors) streamed into a model.

Everything is planned from names and shapes before the first value is read. Then tensors go one by
one from the mapped file into memory of their own, so that the peak is the model plus at most one
tensor. How names are translated is said in `vlmc.builder.naming`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.builder.agreement import disagreements
from vlmc.builder.naming import Names, Rule, fill, names_for
from vlmc.builder.shards import Stored, place, read_json, stored_tensors
from vlmc.diagnostics import UsageError
from vlmc.ir import ROLES, Arch, Role

SHOWN = 12
"""Names in one error; the rest is counted."""


@dataclass(slots=True)
class Plan:
    """What goes where, and what is wrong with that."""

    moves: list[tuple[Stored, tuple[str, ...], Rule]] = field(default_factory=list[Any])
    copies: list[tuple[Stored, str]] = field(default_factory=list[Any])
    faults: list[str] = field(default_factory=list[str])
    misfits: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])


def load_checkpoint(
    model: nn.Module,
    arch: Arch,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Gives every parameter of `model` its values from `folder`; returns `model`.

    `dtype` None keeps the type that config.json names (fp32 where it names none). Frozen parts stay
    frozen. Raises UsageError where the folder is not a checkpoint of this design, with all that
    is missing, unexpected, wrongly shaped or contradicted by config.json; EnvironmentFault where
    a file is damaged.
    """
    return _load(model, arch, Path(folder), roles=ROLES, dtype=dtype, device=device)


def load_part(
    model: nn.Module,
    arch: Arch,
    role: Role,
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Gives one part of `model` its values; of a folder of a whole system, the other parts are
    left on disk. A language model brings its output head along where the folder has one.

    Raises as `load_checkpoint` does.
    """
    return _load(model, arch, Path(folder), roles=_roles(role), dtype=dtype, device=device)


def _load(
    model: nn.Module,
    arch: Arch,
    folder: Path,
    *,
    roles: tuple[Role, ...],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> nn.Module:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan, own_dtype = _planned(shapes, arch, folder, roles)
    dtype = dtype or own_dtype
    where = owners(model)
    for one, targets, rule in plan.moves:
        values = one.read()
        sizes = [shapes[target][0] for target in targets]
        pieces = torch.split(values, sizes) if len(targets) > 1 else (values,)
        for target, piece in zip(targets, pieces, strict=True):
            shaped = piece.reshape(shapes[target]) if rule.squeeze else piece
            assign(where[target], place(shaped, dtype=dtype, device=device))
    for one, target in plan.copies:
        values = one.read()
        if not torch.equal(model.get_parameter(target), values.to(device, dtype)):
            raise UsageError(
                f"{folder} is not a checkpoint of {arch.name}:\n  {one.name} has values of its "
                f"own, but the design ties it to {target} (tied_head)"
            )
    return model


def check_checkpoint(model: nn.Module, arch: Arch, folder: Path, role: Role | None = None) -> None:
    """Raises as `load_checkpoint` (of one role: as `load_part`) does for all that config.json and
    the files' headers tell. Reads no values."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    _planned(shapes, arch, folder, ROLES if role is None else _roles(role))


def _roles(role: Role) -> tuple[Role, ...]:
    """What a part's checkpoint may bring along."""
    return ("language", "head") if role == "language" else (role,)


def _planned(
    shapes: dict[str, tuple[int, ...]], arch: Arch, folder: Path, roles: tuple[Role, ...]
) -> tuple[Plan, torch.dtype]:
    """The plan, without faults, and the type that config.json names."""
    stored, config = stored_tensors(folder), read_json(folder / "config.json")
    if config.get("quantization_config") is not None:
        raise UsageError(f"{folder}: the checkpoint is quantized; only full weights can be read")
    try:
        names, dtype = names_for(config), _own_dtype(config)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    plan = _plan(stored.values(), names, shapes, roles)
    plan.faults[:0] = disagreements(names, config, arch, roles)
    plan.faults.extend(cut(plan.misfits))
    used = [one for one, *_ in (*plan.moves, *plan.copies)]
    codes = [f"{one.name} ({one.dtype})" for one in used if not one.floating]
    if codes:
        plan.faults.append(f"no floating-point numbers, so no weights: {listed(codes)}")
    _missing(plan, names, shapes, roles)
    if plan.unexpected:
        plan.faults.append(f"unexpected on disk: {listed(plan.unexpected)}")
    if plan.faults:
        lines = "\n  ".join(plan.faults)
        raise UsageError(f"{folder} is not a checkpoint of {arch.name}:\n  {lines}")
    return plan, dtype


def _plan(
    stored: Iterable[Stored],
    names: Names,
    shapes: dict[str, tuple[int, ...]],
    roles: tuple[Role, ...],
) -> Plan:
    plan = Plan()
    given: dict[str, str] = {}
    for one in stored:
        name = names.canonical(one.name)
        found = names.rule(name)
        if found is None:
            if not names.is_ignored(name):
                plan.unexpected.append(one.name)
            continue
        rule, words = found
        targets = tuple(fill(target, words) for target in rule.targets)
        here = [target for target in targets if target in shapes]
        if _role((*targets, rule.copy_of or "")[0]) not in roles:
            continue
        if len(here) < max(1, len(targets)):
            if rule.copy_of is not None and rule.copy_of in shapes:
                plan.copies.append((one, rule.copy_of))
            elif rule.spare is None:
                plan.unexpected.append(one.name)
            continue
        for target in targets:
            if target in given:
                plan.faults.append(f"{target} is given twice: by {given[target]} and {one.name}")
            given[target] = one.name
        plan.misfits.extend(_misfit(one, [shapes[target] for target in targets], rule))
        plan.moves.append((one, targets, rule))
    return plan


def _misfit(one: Stored, wanted: list[tuple[int, ...]], rule: Rule) -> Iterator[str]:
    expected = wanted[0]
    if len(wanted) > 1:
        expected = (sum(shape[0] for shape in wanted), *wanted[0][1:])
    fits = one.shape == expected
    if rule.squeeze:
        fits = _without_ones(one.shape) == _without_ones(expected)
    if not fits:
        yield f"{one.name}: expected the shape {list(expected)}, got {list(one.shape)}"


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _missing(
    plan: Plan, names: Names, shapes: dict[str, tuple[int, ...]], roles: tuple[Role, ...]
) -> None:
    """Adds the fault of parameters that nothing gives. A part that is loaded alone may leave the
    head to the rest of the design where the folder has none (an encoder's checkpoint)."""
    given = {target for _, targets, _ in plan.moves for target in targets}
    missing = [name for name in shapes if _role(name) in roles and name not in given]
    if roles != ROLES and not any(_role(name) == "head" for name in given):
        missing = [name for name in missing if _role(name) != "head"]
    if missing:
        shown = [f"{name} ({names.on_disk(name) or 'no rule'})" for name in missing]
        plan.faults.append(f"missing on disk: {listed(shown)}")
    if "head.projection.weight" in missing:
        plan.faults.append("if the checkpoint ties its head to the embedding: `tied_head: true`")


def _role(name: str) -> Role:
    first = name.split(".", maxsplit=1)[0]
    return first if first in ROLES else "fusion"


def listed(names: list[str]) -> str:
    """Names in one line: the first of them, and how many there are."""
    return ", ".join(cut(names, "... ({} in all)"))


def cut(lines: list[str], more: str = "... ({} such faults in all)") -> list[str]:
    """The first lines, and how many there are in all."""
    return [*lines[:SHOWN], *[more.format(len(lines))] * (len(lines) > SHOWN)]


def _own_dtype(config: dict[str, Any]) -> torch.dtype:
    named: Any = config.get("dtype") or config.get("torch_dtype") or "float32"
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if not isinstance(named, str) or named not in known:
        said = repr(named)[:60]
        raise UsageError(f"config.json dtype: {said} is not known here ({', '.join(known)} are)")
    return known[named]


Owners = dict[str, list[tuple[nn.Module, str]]]
"""Where each parameter is held: modules and the attribute's name; several where it is shared."""


def owners(model: nn.Module) -> Owners:
    """The owners of every parameter of `model` by the parameter's (first) name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: Owners = {name: [] for name in names.values()}
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found[names[id(parameter)]].append((module, leaf))
    return found


def assign(places: list[tuple[nn.Module, str]], values: Tensor) -> None:
    """Puts `values` in a parameter's places, as trainable as what stood there."""
    module, leaf = places[0]
    new = nn.Parameter(values, requires_grad=module.get_parameter(leaf).requires_grad)
    for module, leaf in places:
        setattr(module, leaf, new)
