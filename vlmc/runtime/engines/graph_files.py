"""The description of graphs on disk: what they take, give, and are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vlmc.diagnostics.faults import EnvironmentFault


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWire:
    """A tensor that goes into a graph or comes out of it; see `vlmc.capture.graph.Wire`."""

    name: str
    dims: tuple[int | str, ...]
    number: str
    written: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """One graph on disk."""

    path: Path
    inputs: tuple[GraphWire, ...]
    outputs: tuple[GraphWire, ...]
    bounds: Mapping[str, tuple[int, int]]
    constants: Mapping[str, tuple[str, ...] | str]
    """For each constant the weights that it joins, or its own name in constants.safetensors."""

    def most(self, extent: str) -> int | None:
        """The largest value of an extent; None where the graph has no such."""
        return self.bounds[extent][1] if extent in self.bounds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFolder:
    """The graphs of a design for one engine."""

    folder: Path
    torch: str
    """The version of torch that made them, such as 2.13.0."""
    dtype: str
    """The number format in which they compute, as torch calls it."""
    device: str
    system: Mapping[str, Any]
    """What compiled code needs: os, machine, cpu_features. Empty where nothing is compiled."""
    graphs: Mapping[str, GraphFile]
    gpu: tuple[int, int] | None = None
    """The compute capability for which they are compiled; None for a processor's."""

    @property
    def capacity(self) -> int | None:
        """Tokens that one row may have."""
        if "decode" in self.graphs:
            return self.graphs["decode"].most("slots")
        return self.graphs["model"].most("text")


def read_graphs(folder: Path) -> GraphFolder:
    """What `folder`/graphs.json says. Raises EnvironmentFault where it is missing or damaged."""
    path = folder / "graphs.json"
    try:
        found = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        return GraphFolder(
            folder=folder,
            torch=found["torch"],
            dtype=found["dtype"],
            device=found["device"],
            system=found.get("system", {}),
            gpu=_capability(found.get("gpu")),
            graphs={entry["name"]: _graph_file(folder, entry) for entry in found["graphs"]},
        )
    except FileNotFoundError:
        raise EnvironmentFault(f"{folder}: there are no graphs here; build them") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFault(f"{path}: is damaged ({error}); build it again") from None


def _capability(found: Any) -> tuple[int, int] | None:
    if found is None:
        return None
    major, minor = found
    return int(major), int(minor)


def _graph_file(folder: Path, entry: Mapping[str, Any]) -> GraphFile:
    return GraphFile(
        path=folder / entry["file"],
        inputs=tuple(_graph_wire(wire) for wire in entry["inputs"]),
        outputs=tuple(_graph_wire(wire) for wire in entry["outputs"]),
        bounds={name: (least, most) for name, (least, most) in entry["bounds"].items()},
        constants={
            name: parts if isinstance(parts, str) else tuple(parts)
            for name, parts in entry["constants"].items()
        },
    )


def _graph_wire(wire: Mapping[str, Any]) -> GraphWire:
    return GraphWire(
        name=wire["name"],
        dims=tuple(wire["dims"]),
        number=wire["number"],
        written=wire["written"],
    )
