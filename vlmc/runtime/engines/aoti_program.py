"""Compiled packages: loaded after a look at the machine, run without torch's compiler."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmc.diagnostics.faults import EnvironmentFault
from vlmc.hardware.processor import processor_says
from vlmc.runtime.engines.graph_files import GraphFile, GraphFolder
from vlmc.runtime.engines.mapped_weights import MappedWeights

ELSEWHERE = "--engine onnx or --engine compile run here"


class AotiProgram:
    """A compiled graph with its weights, which stay where they are mapped."""

    def __init__(self, graph: GraphFile, weights: MappedWeights) -> None:
        # Read by the package when it is loaded: without it a wrong shape is a wrong answer.
        os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
        # The public loader is this one behind an import of torch's whole compiler.
        native: Any = torch._C  # pyright: ignore[reportPrivateUsage]
        try:
            self.loader = native._aoti.AOTIModelPackageLoader(
                str(graph.path), "model", False, 1, -1
            )
            self.weights = weights.constants(graph)
            wanted: list[str] = self.loader.get_constant_fqns()
            given = {name: self.weights[name] for name in wanted}
            # Arguments: not the inactive buffer, all constants at once, ours to keep alive.
            self.loader.load_constants(given, False, True, True)
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise EnvironmentFault(
                f"{graph.path}: cannot be loaded ({reason}); build it again, or {ELSEWHERE}"
            ) from None

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        return self.loader.run(inputs)


def check_machine(graphs: GraphFolder) -> None:
    """Raises EnvironmentFault where compiled code does not run here, and says why and what does."""
    made_with, here = _minor(graphs.torch), _minor(torch.__version__)
    if made_with != here:
        raise EnvironmentFault(
            f"{graphs.folder} was compiled for torch {made_with}, and torch {here} is installed: "
            f"build it again with this one, or {ELSEWHERE}"
        )
    if graphs.device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault(
            f"{graphs.folder} was compiled for an NVIDIA GPU, and torch sees none; {ELSEWHERE}"
        )
    if graphs.device == "cuda" and graphs.gpu is not None:
        # Machine code of one capability runs on later ones of the same generation.
        (major, minor), own = graphs.gpu, torch.cuda.get_device_capability()
        if own[0] != major or own[1] < minor:
            raise EnvironmentFault(
                f"{graphs.folder} was compiled for GPUs of capability {major}.{minor}, and "
                f"this one has {own[0]}.{own[1]}: build it again here, or {ELSEWHERE}"
            )
    for word, name in (("os", platform.system()), ("machine", platform.machine())):
        if graphs.system.get(word) != name:
            raise EnvironmentFault(
                f"{graphs.folder} was compiled for {graphs.system.get(word)}, and this is {name}; "
                f"{ELSEWHERE}"
            )
    missing = missing_features(graphs.system, cpu_features())
    if missing:
        raise EnvironmentFault(
            f"{graphs.folder} was compiled for a CPU with {', '.join(missing)}, which this one "
            f"lacks: build it again here, or {ELSEWHERE}"
        )


def missing_features(system: Mapping[str, Any], present: frozenset[str]) -> list[str]:
    """What compiled code needs of a CPU that has the features `present`, and does not find."""
    if not present:  # this system does not say what its CPU can do
        return []
    return [name for name in system.get("cpu_features", ()) if name not in present]


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The features of this CPU in the kernel's words; none where the system does not tell."""
    return frozenset((processor_says("flags", "Features", path=path) or "").split())


def _minor(version: str) -> str:
    return ".".join(version.partition("+")[0].split(".")[:2])
