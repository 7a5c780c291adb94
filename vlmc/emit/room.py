"""Whether the present machine has room to compare a design with itself."""

from __future__ import annotations

from vlmc.hardware.host import free_memory
from vlmc.ir import Arch

BESIDE = 2**30
"""Bytes of memory for activations and the interpreter, beside the weights."""


def bytes_twice(arch: Arch) -> int:
    """Bytes of the weights of a design in fp32, twice: as they are and as an artifact has them."""
    return 8 * arch.parameters


def holds_twice(arch: Arch) -> bool:
    """Whether a design can be measured itself, and not on its twin."""
    return bytes_twice(arch) + BESIDE <= free_memory()
