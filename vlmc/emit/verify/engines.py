"""What executes the artifacts of a build, and the files by which it is told that there are any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from vlmc.diagnostics import EnvironmentFault
from vlmc.emit.verify.cases import Case
from vlmc.emit.verify.subject import Subject
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.engines.graph_files import read_graphs
from vlmc.runtime.engines.open import open_engine

LAYOUT = "transformers.js"


@dataclass(frozen=True, slots=True)
class Runtime:
    """What executes an artifact."""

    artifact: str
    package: str
    variant: Literal["int8", "int4"] | None = None
    """The number format of the quantised graphs that it executes."""
    paged: bool = False
    """Whether it keeps key/value caches in blocks of a pool, by graphs of their own."""

    @property
    def executed(self) -> Mapping[str, str]:
        """What executes it, with its version; of graphs for torch.compile, in which form."""
        found = {self.package: version(self.package)}
        if self.artifact == "compile":
            found["graphs"] = "as exported; one case compiled" if self.paged else "compiled"
        return found

    @property
    def judged(self) -> Literal["max_relative", "mean_relative"]:
        """The error by which it is judged."""
        return "max_relative" if self.variant is None else "mean_relative"

    def present(self, folder: Path) -> bool:
        """Whether the artifact, which is in the build `folder`, holds graphs for it."""
        if self.paged:
            return any((folder / self.artifact).glob("paged_*.pt2"))
        if self.variant is None:
            return True
        endings = [f".{self.variant}"] if self.artifact != LAYOUT else _endings(self.variant)
        return any(any((folder / self.artifact).rglob(f"*{ending}.onnx")) for ending in endings)


ENGINES: Mapping[str, Runtime] = {
    "compile": Runtime("compile", "torch"),
    "compile-paged": Runtime("compile", "torch", paged=True),
    "onnx": Runtime("onnx", "onnxruntime"),
    "onnx-int8": Runtime("onnx", "onnxruntime", "int8"),
    "onnx-int4": Runtime("onnx", "onnxruntime", "int4"),
    LAYOUT: Runtime(LAYOUT, "onnxruntime"),
    f"{LAYOUT}-int8": Runtime(LAYOUT, "onnxruntime", "int8"),
    f"{LAYOUT}-int4": Runtime(LAYOUT, "onnxruntime", "int4"),
    "aoti": Runtime("aoti", "torch"),
}


def runs(runtime: Runtime, cases: list[Case]) -> list[tuple[bool, list[Case]]]:
    """How an artifact is executed: the cases of each time, and whether its graphs are compiled.
    Paged ones are compiled for one case alone, of rows that take blocks in turns: it takes longer
    than all the rest, and the compiler has shown itself at the same layers over another cache."""
    if not runtime.paged:
        return [(True, cases)]
    several = [case for case in cases if len(case.prompts) > 1]
    return [(False, cases), (True, several[:1])]


def opened(
    runtime: Runtime, subject: Subject, cases: list[Case], *, compiled: bool = True
) -> Engine:
    """The engine over the subject's own graphs, with room for each of `cases`."""
    if runtime.artifact == LAYOUT:
        return _client(runtime, subject.folder / LAYOUT)
    if runtime.paged:
        return open_engine(
            subject.folder,
            runtime.artifact,
            subject.design,
            blocks=max(_blocks(subject.folder, case) for case in cases),
            backend="inductor" if compiled else "eager",
        )
    name = runtime.artifact if runtime.variant is None else f"{runtime.artifact}-{runtime.variant}"
    return open_engine(subject.folder, name, subject.design)


def _client(runtime: Runtime, folder: Path) -> Engine:
    """The layout's graphs of one number format. Where they lie there under a second name, the bytes
    have to be the same: what is measured of the one then holds for the other."""
    from vlmc.emit.layout.transformers_js import GRAPHS
    from vlmc.emit.verify.client import Client

    first, *others = _endings(runtime.variant)
    for stem in GRAPHS.values():
        for other in others:
            names = [folder / "onnx" / f"{stem}{ending}.onnx" for ending in (first, other)]
            if names[0].read_bytes() != names[1].read_bytes():
                raise EnvironmentFault(f"onnx/{names[1].name} is not the same as {names[0].name}")
    return Client(folder, first)


def _endings(variant: Literal["int8", "int4"] | None) -> tuple[str, ...]:
    from vlmc.emit.layout.transformers_js import VARIANTS

    return ("",) if variant is None else VARIANTS[variant]


def _blocks(folder: Path, case: Case) -> int:
    """As many blocks as the rows of a case could fill."""
    graph = read_graphs(folder / "compile").graphs["paged_decode"]
    width = next(wire.dims[1] for wire in graph.inputs if wire.name == "table")
    return len(case.prompts) * int(width)
