"""Which CPU features compiled code needs.

Code is compiled for one of the levels of the x86-64 psABI and not for the very CPU of this machine,
so that what it needs can be said and many machines have it.
"""

from __future__ import annotations

import platform
import re
from typing import Any

import torch

LEVELS = {
    "AVX512": (
        "x86-64-v4",
        ("avx2", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl", "bmi2", "f16c", "fma"),
    ),
    "AVX2": ("x86-64-v3", ("avx2", "bmi2", "f16c", "fma")),
}
"""What torch calls this CPU's capability; what compilers call the level; its features, in the
kernel's words."""

WORDS = {
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
    "amx-fp16": "amx_fp16",
}
"""The kernel's words for features where compilers have others."""


def level() -> str | None:
    """The level to compile for; None is what the compiler takes of its own accord."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    return LEVELS.get(torch.backends.cpu.get_cpu_capability(), ("x86-64", ()))[0]


def features(compiled_for: str | None) -> list[str]:
    """What the code then needs: the level's features, and those of the vectors that torch's code
    generator chooses by itself."""
    from torch._inductor import cpu_vec_isa

    isa: Any = cpu_vec_isa.pick_vec_isa()
    words: str = isa.build_arch_flags() if isa else ""
    flags: list[str] = re.findall(r"-m((?:avx|amx|fma|f16c)[\w-]*)", words)
    own = next((each for name, each in LEVELS.values() if name == compiled_for), ())
    return sorted({*own, *(WORDS.get(flag, flag) for flag in flags)})
