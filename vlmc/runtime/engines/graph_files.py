"""The description of graphs on disk: what they take, give, and are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vlmc.diagnostics.faults import EnvironmentFault

GRAPHS_SCHEMA = 2
"""How graphs.json and the wires that it names are to be read. In 1, steps returned their logits."""


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
        """Tokens that one row may have. Raises EnvironmentFault where no graph answers."""
        for name, extent in (("decode", "slots"), ("model", "text")):
            if name in self.graphs:
                return self.graphs[name].most(extent)
        raise EnvironmentFault(f"{self.folder}: there is no graph that answers; build it again")

    @property
    def place(self) -> str:
        """Where they run, as torch calls it."""
        return "cuda" if self.device == "cuda" else "cpu"


def read_graphs(folder: Path) -> GraphFolder:
    """What `folder`/graphs.json says. Raises EnvironmentFault where it is missing or damaged."""
    path = folder / "graphs.json"
    try:
        found = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        if found.get("schema", GRAPHS_SCHEMA) != GRAPHS_SCHEMA:
            raise EnvironmentFault(f"{folder}: made by another release of vlmc; build it again")
        graphs = {entry["name"]: _graph_file(folder, entry) for entry in found["graphs"]}
        return GraphFolder(
            folder=folder,
            torch=str(found["torch"]),
            dtype=_graph_word(found, "dtype", ("float32", "bfloat16", "float16")),
            device=_graph_word(found, "device", ("any", "cpu", "cuda")),
            system=dict(found.get("system", {})),
            gpu=_capability(found.get("gpu")),
            graphs=graphs,
        )
    except FileNotFoundError:
        raise EnvironmentFault(f"{folder}: there are no graphs here; build them") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvironmentFault(f"{path}: is damaged ({error}); build it again") from None


def _graph_word(found: Mapping[str, Any], key: str, words: Sequence[str]) -> str:
    if found[key] not in words:
        raise ValueError(f"{key} is {found[key]!r}: {', '.join(words)} is expected")
    return found[key]


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
        bounds={name: (int(least), int(most)) for name, (least, most) in entry["bounds"].items()},
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
