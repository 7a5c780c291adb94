"""Devices: what they hold, how fast they move and compute. One data file each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmc.hardware.efficiency import MOVING, Efficiency, Kind
from vlmc.hardware.efficiency import share as share_of

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

UPDATED: dict[str, float] = {"adamw": 80, "sgd": 12}
"""Bytes that an optimiser reads and writes for each parameter in fp32, one operator after the other
as torch.optim runs them (AdamW: eight that take a tensor in place or make one)."""

FOLDER = Path(__file__).with_name("devices")
SUFFIXES = (".yaml", ".yml")
MAX_FILE = 2**20
"""Bytes of a device file, at most."""


class BadDevice(Exception):
    """A device file that is missing or says what cannot be. One sentence."""


class Device(BaseModel):
    """One accelerator. All rates are dense (without structured sparsity) and at their peak."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    about: str
    source: str = Field(description="Where the figures were published.")
    cuda: bool = Field(default=True, description="Whether it runs what is compiled for CUDA.")
    memory_gb: float = Field(gt=0, description="Memory, in 10^9 bytes.")
    memory_gbps: float = Field(gt=0, description="Memory bandwidth, in 10^9 bytes a second.")
    tflops: dict[str, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="Peak rate by number format, in 10^12 operations a second."
    )
    link: str = Field(default="none", description="What joins it to its neighbours.")
    link_gbps: float | None = Field(
        default=None, gt=0, description="Bidirectional link rate, in 10^9 bytes a second."
    )
    per_node: int = Field(default=1, ge=1, description="Devices of a node, which the link joins.")
    network_gbps: float | None = Field(
        default=None,
        gt=0,
        description="What one device moves to another node, one way, in 10^9 bytes a second; "
        "without it, there is one node.",
    )
    node: str = Field(default="", description="Where node size and network are from.")
    efficiency: Efficiency = Field(description="What of the peak rates is reached.")

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats that it computes in."""
        return tuple(self.tflops)

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gb * 1e9)

    def seconds(
        self,
        flops: float,
        size: float,
        number: str,
        kind: Kind = "matmul",
        *,
        serving: bool = False,
    ) -> float:
        """The roofline: what one call of `flops` FLOPs that moves `size` bytes takes; only products
        and attention are held to the peak rate. `serving`: where nothing is kept. Raises KeyError
        where the device does not compute in the format `number`."""
        own = self.efficiency.serving if serving else None
        share = own and size and own.share(flops, size, BYTES[number], kind)
        if share and self._usual(number, kind):
            return size / (self.memory_gbps * 1e9 * share)
        if kind in MOVING:
            return self.moving_seconds(size, kind)
        compute = flops and flops / (
            self.tflops[number] * 1e12 * self.efficiency.compute_share(flops, number, kind)
        )
        return max(compute, self.moving_seconds(size))

    def _usual(self, number: str, kind: Kind) -> bool:
        """Whether work is timed by curves of the format that they were measured in."""
        return kind in MOVING or number not in self.efficiency.formats

    def moving_seconds(self, size: float, kind: Kind = "elementwise") -> float:
        """What reading and writing `size` bytes of memory takes."""
        return size and size / (self.memory_gbps * 1e9 * self.efficiency.memory_share(size, kind))

    def update_seconds(self, numbers: float, optimiser: str) -> float:
        """What the optimiser takes for a parameter of `numbers` numbers in fp32."""
        size = numbers * UPDATED[optimiser]
        curve = self.efficiency.adamw
        if optimiser != "adamw" or curve is None:
            return self.moving_seconds(size)
        return size and size / (self.memory_gbps * 1e9 * share_of(curve, numbers))


@cache
def names() -> tuple[str, ...]:
    """Every device that has a data file, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def is_file(word: str) -> bool:
    """Whether a target's `hardware` is meant as the path of a device file."""
    return word.endswith(SUFFIXES)


def device(name: str) -> Device:
    """The device of that name, or of the device file at that path (relative to the working
    directory). Raises KeyError where there is no such name, BadDevice for a bad file."""
    if is_file(name):
        return _read(Path(name))
    if name not in names():
        raise KeyError(name)
    return _shipped(name)


@cache
def _shipped(name: str) -> Device:
    return _read(FOLDER / f"{name}.yaml")


def _read(path: Path) -> Device:
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
            raise BadDevice(f"{path} is no device file")
        text = path.read_text(encoding="utf-8")
        data: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise BadDevice(f"{path} cannot be read: {why}") from None
    except (yaml.YAMLError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0)
        raise BadDevice(f"{path}, line {line + 1}: it is no YAML") from None
    if not isinstance(data, dict):
        raise BadDevice(f"{path} is no mapping of a device's figures")
    try:
        return Device.model_validate({"name": path.stem, **data})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadDevice(f"{path}: {where}: {_said(first)}") from None


def _said(error: Any) -> str:
    """What is wrong with a value, with the value where that is short."""
    what = str(error["msg"]).removeprefix("Value error, ")
    what = what[0].lower() + what[1:]
    given = error["input"]
    short = isinstance(given, int | float | str) and error["type"] != "missing"
    return f"{what} (it is {str(given)[:40]})" if short else what
