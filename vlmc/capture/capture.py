"""From an `Arch` to captured graphs, with nothing of the weights in memory."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from vlmc.builder.model import instantiate
from vlmc.capture.graph import Graph, Stage, Stored, Wire
from vlmc.capture.stages import CacheKind, capacity, stages, written
from vlmc.ir import Arch

ROOM = 8
"""Tokens that graphs have room for at least, enough for extents unlike each other to trace with."""


def capture(arch: Arch, *, cache: CacheKind, dtype: torch.dtype = torch.float32) -> list[Graph]:
    """The graphs of a design in the order in which they run. Weights are shapes only, so that the
    largest design is captured on the smallest machine.

    `dtype` is that in which the graphs compute.
    """
    bounds = extents(arch)
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        with _default(dtype):
            model = instantiate(arch, device="cpu").eval().requires_grad_(False)
        found = [written(stage) for stage in stages(arch, model, cache)]
        return [_captured(stage, bounds, dtype, arch) for stage in found]


@contextmanager
def _default(dtype: torch.dtype) -> Generator[None]:
    """New parameters are of `dtype` within: a fake model cannot be converted afterwards."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def extents(arch: Arch) -> dict[str, tuple[int, int]]:
    """The least and the largest value of each extent that varies, by the token budget and the
    target's workload. Where the budget is shorter than `ROOM`, sequences vary up to that: a single
    value would be a constant, and nothing could be told from anything else."""
    tokens = arch.tokens
    sequence = max(tokens.sequence, ROOM)
    return {
        "batch": (1, arch.batch),
        "images": (1, max(1, tokens.images) * arch.batch),
        "frames": (1, _frames(arch)),
        "text": (1, sequence),
        "source": (1, sequence),
        "past": (0, sequence),
        "total": (1, 2 * sequence),
        "slots": (1, capacity(arch) - 1),
        "pool": (2, 2**20),
        "visual": (1, max(tokens.images * tokens.per_image, ROOM)),
    }


def _frames(arch: Arch) -> int:
    frames = arch.node("encoder").arguments.get("frames", 1)
    return frames if isinstance(frames, int) else 1


def _captured(
    stage: Stage, bounds: Mapping[str, tuple[int, int]], dtype: torch.dtype, arch: Arch
) -> Graph:
    names = {dim for wire in stage.inputs for dim in wire.dims if isinstance(dim, str)}
    dims = _dimensions(names, bounds, arch)
    sizes = _samples(names, bounds, arch)
    examples = tuple(_example(wire, sizes, dtype) for wire in stage.inputs)
    shapes = [
        {axis: dims[dim] for axis, dim in enumerate(wire.dims) if isinstance(dim, str)}
        for wire in stage.inputs
    ]
    program = export(
        stage.body,
        examples,
        dynamic_shapes=_as_arguments(stage, shapes),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    return Graph(
        name=stage.name,
        program=program,
        inputs=stage.inputs,
        outputs=stage.outputs,
        bounds={name: bounds[name] for name in sorted(names)},
        constants=_constants(program),
    )


def _as_arguments(stage: Stage, shapes: list[Any]) -> Any:
    """Dynamic shapes in the form of the body's signature: what is beyond its named arguments goes
    to its `*rest`."""
    import inspect

    parameters = inspect.signature(stage.body.forward).parameters.values()
    named = [p for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    if len(named) == len(shapes):
        return tuple(shapes)
    return (*shapes[: len(named)], tuple(shapes[len(named) :]))


def _dimensions(
    names: set[str], bounds: Mapping[str, tuple[int, int]], arch: Arch
) -> dict[str, Any]:
    dims: dict[str, Any] = {
        name: Dim(name, min=bounds[name][0], max=bounds[name][1]) for name in sorted(names)
    }
    if "total" in names:
        # past + text, each of which tracing takes to be two at least.
        dims["total"] = Dim("total", min=4, max=bounds["total"][1])
    if arch.serving == "cross_attention" and {"visual", "images"} <= names:
        dims["visual"] = arch.tokens.per_image * dims["images"]
    return dims


def _samples(names: set[str], bounds: Mapping[str, tuple[int, int]], arch: Arch) -> dict[str, int]:
    """Extents to trace with: unlike each other, none 0 or 1, which tracing takes for constants."""
    sizes = {name: min(3 + index, bounds[name][1]) for index, name in enumerate(sorted(names))}
    if {"total", "past", "text"} <= names:
        sizes["total"] = sizes["past"] + sizes["text"]
    if arch.serving == "cross_attention" and {"visual", "images"} <= names:
        sizes["visual"] = arch.tokens.per_image * sizes["images"]
    return sizes


def _example(wire: Wire, sizes: Mapping[str, int], dtype: torch.dtype) -> torch.Tensor:
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in wire.dims]
    kinds = {"float": dtype, "int": torch.int64, "bool": torch.bool}
    return torch.zeros(shape, dtype=kinds[wire.number])


def _constants(program: ExportedProgram) -> dict[str, Stored]:
    """Each parameter by its name in the program; the body calls the model `model`."""
    return {
        spec.target: Stored(parts=(spec.target.removeprefix("model."),))
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.PARAMETER and spec.target is not None
    }
