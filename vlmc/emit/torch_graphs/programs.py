"""From a design to exported programs on disk that hold no weights, and the description beside them.

A program names its constants; `graphs.json` says of which weights of the build each consists, so
that the weights exist once. What follows from weights alone but is none of them (tanh of a gate)
lies in `constants.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from vlmc.builder.located import Located, located
from vlmc.builder.shards import stored_tensors
from vlmc.capture.capture import capture
from vlmc.capture.graph import Folded, Graph, Stored
from vlmc.capture.program import ORIGIN
from vlmc.capture.stages import CacheKind
from vlmc.diagnostics import UsageError
from vlmc.emit.artifact import Progress
from vlmc.emit.recipe import OF_DESIGN
from vlmc.emit.torch_graphs.archive import rewrite
from vlmc.ir import Arch
from vlmc.passes.effect import Effect
from vlmc.passes.pipeline import optimise
from vlmc.runtime.engines.graph_files import GRAPHS_SCHEMA

Tell = Callable[[Effect], None] | None

_KEPT: dict[tuple[str, str, str], tuple[list[Graph], list[Effect]]] = {}
"""Graphs of the last design, by its text, kind of cache and number format, with what passes did to
them: compile/ and aoti/ of one build are made of the same."""

NUMBERS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CONSTANTS = "constants.safetensors"
DESCRIPTION = "graphs.json"


def write_compile(
    arch: Arch,
    weights: Path,
    folder: Path,
    *,
    progress: Progress,
    tell: Tell = None,
    caches: Sequence[CacheKind] = ("static", "paged"),
) -> None:
    """Fills `folder` with the graphs of a design for torch.compile, with caches of each kind;
    `weights` is the folder of the build's safetensors files. `tell` hears what the passes do.

    Raises UsageError where the weights are in a number format that no graph computes in.
    """
    if arch.serving == "single_pass":
        caches = caches[:1]  # it reads one sequence and keeps nothing
    graphs, dtype = optimised(arch, weights, progress, tell, caches)
    folder.mkdir(parents=True, exist_ok=True)
    for number, graph in enumerate(graphs):
        progress(f"compile/{graph.name}.pt2", number, len(graphs))
        save_program(graph, folder / f"{graph.name}.pt2", dtype)
    describe(arch, graphs, dtype, weights, folder, extra={"device": "any"})


def optimised(
    arch: Arch,
    weights: Path,
    progress: Progress,
    tell: Tell = None,
    kinds: Sequence[CacheKind] = ("static",),
) -> tuple[list[Graph], torch.dtype]:
    """The graphs of a design for torch with caches of `kinds`, in the number format of most of its
    weights."""
    dtype = number_format(located(weights))
    graphs: list[Graph] = []
    for kind in kinds:
        key = (repr(arch), kind, str(dtype))
        if key not in _KEPT:
            progress("capturing graphs")
            if any(other != key[0] for other, _, _ in _KEPT):
                _KEPT.clear()
            effects: list[Effect] = []
            captured = capture(arch, cache=kind, dtype=dtype)
            _KEPT[key] = [optimise(graph, "torch", effects.append) for graph in captured], effects
        found, effects = _KEPT[key]
        graphs += found
        if tell is not None:
            for effect in effects:
                tell(effect)
    return graphs, dtype


def number_format(places: dict[str, Located]) -> torch.dtype:
    """That of most bytes of the weights. Raises UsageError where it is none of `NUMBERS`."""
    sizes: dict[str, int] = {}
    for one in places.values():
        sizes[one.dtype] = sizes.get(one.dtype, 0) + one.end - one.begin
    most = max(sizes, key=lambda kind: (sizes[kind], kind))
    if most not in NUMBERS:
        raise UsageError(
            f"the weights are {most}, in which no graph computes; {', '.join(NUMBERS)} would do"
        )
    return NUMBERS[most]


def save_program(graph: Graph, path: Path, dtype: torch.dtype) -> None:
    """Writes the program of `graph` without weights, example inputs and origins.

    Its parameters are views of a single number: the format stores that one number, and needs no
    pickle, neither to write nor to read it.
    """
    program: Any = graph.program
    for node in program.graph.nodes:
        for key in ORIGIN:  # text for people, with paths of the machine that captured it
            node.meta.pop(key, None)
    program._state_dict = weightless(program.state_dict)
    program._example_inputs = None
    with warnings.catch_warnings():
        # Of parameters that share a number, none is the whole of it.
        warnings.filterwarnings("ignore", "No complete tensor found", UserWarning)
        torch.export.save(program, path)
    rewrite(path)


def weightless(state: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    """A parameter for each, of its shape and number format, that takes no memory."""
    single = {value.dtype: torch.zeros((), dtype=value.dtype) for value in state.values()}
    return {
        name: nn.Parameter(single[value.dtype].expand(value.shape), requires_grad=False)
        for name, value in state.items()
    }


def describe(
    arch: Arch,
    graphs: Sequence[Graph],
    dtype: torch.dtype,
    weights: Path,
    folder: Path,
    *,
    extra: dict[str, Any],
) -> None:
    """Writes `graphs.json`, and `constants.safetensors` where a constant is no weight."""
    folded: dict[str, Tensor] = {}
    document = {
        "schema": GRAPHS_SCHEMA,
        "torch": torch.__version__.split("+", maxsplit=1)[0],
        "dtype": str(dtype).removeprefix("torch."),
        "serving": arch.serving,
        "start_token": arch.node("language").arguments.get("start_token"),
        **extra,
        "graphs": [_entry(graph, weights, folded) for graph in graphs],
    }
    if folded:
        metadata = None if any(map(_of_values, graphs)) else OF_DESIGN
        (folder / CONSTANTS).write_bytes(save(folded, metadata))
    (folder / DESCRIPTION).write_text(json.dumps(document) + "\n", encoding="utf-8")


def _of_values(graph: Graph) -> bool:
    """Whether a constant is computed from the values of weights."""
    return any(isinstance(one, Folded) and one.parts for one in graph.constants.values())


def _entry(graph: Graph, weights: Path, folded: dict[str, Tensor]) -> dict[str, Any]:
    constants: dict[str, Any] = {}
    for target, constant in graph.constants.items():
        if isinstance(constant, Stored):
            constants[target] = list(constant.parts)
            continue
        like = graph.program.state_dict[target]
        values = _values(constant, weights).to(like.dtype).reshape(like.shape).contiguous()
        # Graphs share what is equal.
        data = values.view(-1).view(torch.uint8).numpy().tobytes()
        name = hashlib.sha256(f"{like.dtype}{like.shape}".encode() + data).hexdigest()[:16]
        folded[name] = values
        constants[target] = name
    return {
        "name": graph.name,
        "file": f"{graph.name}.pt2",
        "inputs": [asdict(wire) for wire in graph.inputs],
        "outputs": [asdict(wire) for wire in graph.outputs],
        "bounds": {name: list(bounds) for name, bounds in graph.bounds.items()},
        "constants": constants,
    }


def _values(constant: Folded, weights: Path) -> Tensor:
    stored = stored_tensors(weights)
    with torch.no_grad():
        return constant.compute(*(stored[part].read() for part in constant.parts))
