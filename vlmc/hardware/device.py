"""Devices: what they hold, how fast they move and compute. One data file each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

BYTES: dict[str, float] = {
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "int4": 0.5,
}
"""Bytes of a number in each format."""

FOLDER = Path(__file__).with_name("devices")


class Device(BaseModel):
    """One accelerator. All rates are dense (without structured sparsity) and at their peak."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    about: str
    source: str = Field(description="Where the figures were published.")
    memory_gb: float = Field(gt=0, description="Memory, in 10^9 bytes.")
    memory_gbps: float = Field(gt=0, description="Memory bandwidth, in 10^9 bytes a second.")
    tflops: dict[str, float] = Field(
        description="Peak rate by number format, in 10^12 operations a second."
    )
    link: str = Field(description="What joins it to its neighbours.")
    link_gbps: float = Field(gt=0, description="Bidirectional link rate, in 10^9 bytes a second.")

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats that it computes in."""
        return tuple(self.tflops)

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gb * 1e9)


@cache
def names() -> tuple[str, ...]:
    """Every device that has a data file, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@cache
def device(name: str) -> Device:
    """The device of that name. Raises KeyError where there is none."""
    if name not in names():
        raise KeyError(name)
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    data: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return Device(name=name, **data)
