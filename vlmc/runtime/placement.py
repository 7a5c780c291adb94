"""Where a model runs: the device, its number format, and whether it fits there."""

from __future__ import annotations

import torch

from vlmc.capture.stages import BLOCK
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.hardware.host import free_memory
from vlmc.ir import Arch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats that a model may run in."""


def dtype_of(given: torch.dtype | str | None) -> torch.dtype:
    """A number format by its name or as torch's; fp32 for None. Raises UsageError for another."""
    if given is None:
        return torch.float32
    if isinstance(given, str) and given in DTYPES:
        return DTYPES[given]
    if not isinstance(given, torch.dtype) or not given.is_floating_point:
        raise UsageError(f"dtype {given}: {', '.join(DTYPES)} or one of torch's is expected")
    return given


def device_of(name: str, option: str = "--device") -> torch.device:
    """The torch device called `name`, which `option` gave. Raises UsageError for no such name,
    EnvironmentFault for a device that this machine lacks."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"{option} {name}: cpu, cuda, cuda:1, mps, ... is expected") from None
    if device.type == "meta":
        raise UsageError(f"{option} meta: nothing can be computed there")
    if device.type == "cpu":
        return device
    try:
        torch.empty(1, device=device)
    except Exception as error:  # each backend fails in its own way where the device is absent
        reason = str(error).split("\n")[0]
        raise EnvironmentFault(f"{option} {name} cannot be used here: {reason}") from None
    return device


def check_memory(arch: Arch, device: torch.device, dtype: torch.dtype, cache_bytes: int) -> None:
    """Raises EnvironmentFault, with the arithmetic, unless weights and key/value cache fit."""
    free = _free(device)
    weights = arch.parameters * dtype.itemsize
    if weights + cache_bytes <= free:
        return
    raise EnvironmentFault(
        f"{arch.name} does not fit: {arch.parameters:,} parameters x {dtype.itemsize} bytes = "
        f"{weights / 1e9:,.1f} GB, + {cache_bytes / 1e9:,.1f} GB key/value cache = "
        f"{(weights + cache_bytes) / 1e9:,.1f} GB, but {device} has {free / 1e9:,.1f} GB free; "
        f"--mini runs its laptop-size twin"
    )


def check_blocks(
    arch: Arch, blocks: int, token: int, device: torch.device, dtype: torch.dtype
) -> None:
    """Raises UsageError, with the arithmetic, unless the weights and a pool of so many blocks fit;
    `token` is how many numbers the key/value cache holds of one."""
    if not token:
        raise UsageError(f"blocks {blocks}: {arch.name} keeps no key/value cache; leave blocks out")
    free = _free(device)
    block = BLOCK * token * dtype.itemsize
    weights = arch.parameters * dtype.itemsize
    pool = (blocks + 1) * block  # one is nobody's: padding is written there
    if weights + pool <= free:
        return
    most = max(0, (free - weights) // block - 1)
    raise UsageError(
        f"blocks {blocks:,}: with that of padding, x {BLOCK} tokens x {token:,} numbers x "
        f"{dtype.itemsize} bytes = {pool / 1e9:,.1f} GB key/value cache, + {weights / 1e9:,.1f} GB "
        f"weights, but {device} has {free / 1e9:,.1f} GB free: {most:,} blocks at most"
    )


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
