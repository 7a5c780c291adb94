"""A design's ONNX graphs, beside the weights that they read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from onnx import helper
from torch import Tensor

from vlmc.builder.located import Located, located, located_in
from vlmc.builder.shards import stored_tensors
from vlmc.builder.stream import Streamed, write_safetensors
from vlmc.capture.capture import capture
from vlmc.capture.graph import Folded, Graph, Wire
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.emit.artifact import Progress, silent
from vlmc.emit.carry import link
from vlmc.emit.onnx.builder import TYPES, Builder
from vlmc.emit.onnx.external import Initializer, Tables, of_weights
from vlmc.emit.onnx.lowering import Lowering
from vlmc.emit.onnx.measure import QuantisationError, measure
from vlmc.emit.onnx.operators import OPERATORS
from vlmc.emit.onnx.quantise import Quantiser
from vlmc.emit.onnx.threshold import QUANTISATION, threshold
from vlmc.emit.options import Options
from vlmc.ir import Arch
from vlmc.passes.effect import Effect
from vlmc.passes.pipeline import optimise
from vlmc.runtime.finite import DAMAGED, named_tensors, not_finite

DIMS = {
    "batch": "batch_size",
    "text": "sequence_length",
    "past": "past_sequence_length",
    "total": "total_sequence_length",
    "source": "encoder_sequence_length",
    "visual": "visual_length",
    "images": "num_images",
    "frames": "num_frames",
    "sequence": "sequence_length + visual_length",
}
"""Extents by the names that ONNX clients know; transformers.js looks for `batch_size`."""

NUMBERS = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}

WEIGHTS = "weights"
CONSTANTS = "constants.safetensors"
PAST = "past_key_values."


def write(
    arch: Arch,
    weights: Path,
    folder: Path,
    *,
    options: Options,
    progress: Progress = silent,
    tell: Callable[[Effect], None] | None = None,
) -> None:
    """Fills `folder` with a graph for each stage: vision, embed, encoder, decoder or model.

    Graphs hold no weights: they point into the files of `weights`, which appear below `folder` as
    hard links (as copies where the file system has none), since a runtime opens nothing outside
    the graph's folder. `tell` hears what the passes do. Raises UsageError where
    quantisation costs more than the options allow, EnvironmentFault where its cost is no number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link_weights(weights, folder)
    progress("onnx: capturing graphs")
    captured = capture(arch, cache="growing")
    graphs = [optimise(graph, "onnx", tell) for graph in captured]
    plain = Writer(arch, weights, folder, options, progress)
    plain.write(graphs)
    if options.quantize is not None:
        plain.write_quantised([optimise(graph, "quantised", None) for graph in captured])
        progress(f"onnx: measuring what {options.quantize} costs")
        error = measure(arch, folder, options.quantize)
        check(error, options, weights)
        found = {key: float(f"{value:.3g}") for key, value in asdict(error).items()}
        found["allowed"] = threshold(options)
        (folder / QUANTISATION).write_text(json.dumps({options.quantize: found}, indent=2) + "\n")


def link_weights(weights: Path, folder: Path) -> None:
    """The files of `weights` below `folder`, anew where they are there already."""
    (folder / WEIGHTS).mkdir(parents=True, exist_ok=True)
    for file in sorted({one.file for one in located(weights).values()}):
        place = folder / WEIGHTS / file.name
        place.unlink(missing_ok=True)
        link(file, place)


def check(error: QuantisationError, options: Options, weights: Path) -> None:
    """Raises UsageError where quantised graphs are too far from the plain ones, EnvironmentFault
    where there is nothing to compare."""
    if not math.isfinite(error.mean):
        bad = not_finite(weights)
        cause = f"weights hold NaN or infinity: {named_tensors(bad)}" if bad else "logits overflow"
        remedy = f"{DAMAGED}: build from another copy" if bad else "--dtype fp32 holds more"
        raise EnvironmentFault(f"{cause}, so that {options.quantize} cannot be compared; {remedy}")
    allowed = threshold(options)
    if not error.mean <= allowed:
        raise UsageError(
            f"{options.quantize} moves the logits by {error.mean:.3g} of their standard deviation "
            f"on average ({error.largest:.3g} at most; {error.agreement:.0%} of the tokens stay), "
            f"more than the {allowed:g} that is allowed; "
            f"--max-error {_rounded_up(error.mean):g} would allow it"
            + (", and --quantize int8 is closer" if options.quantize == "int4" else "")
        )


def _rounded_up(number: float) -> float:
    """To two digits."""
    if not 0 < number < math.inf:
        return number
    scale = 10.0 ** (math.floor(math.log10(number)) - 1)
    return math.ceil(number / scale) * scale


class Writer:
    """Writes graphs of one build."""

    def __init__(
        self, arch: Arch, weights: Path, folder: Path, options: Options, progress: Progress
    ) -> None:
        self.image_tokens = arch.tokens.per_image
        self.folder = folder
        self.options = options
        self.progress = progress
        self.places = located(weights)
        self.stored = stored_tensors(weights)
        self.tables = Tables(CONSTANTS)

    def read(self, name: str) -> Tensor:
        """The values of a weight."""
        return self.stored[name].read()

    def write(self, graphs: Sequence[Graph]) -> None:
        """Every graph as it is."""
        made = [self._lowered(graph, None, self.tables) for graph in graphs]
        tables = [_streamed(name, values) for name, values in self.tables.values.items()]
        written = self._streamed_into(CONSTANTS, tables)
        for graph, builder, outputs in made:
            self._save(f"{graph.name}.onnx", graph, builder, outputs, written)

    def write_quantised(self, graphs: Sequence[Graph]) -> None:
        """The graphs of the language model once more, with quantised weights."""
        bits = self.options.quantize
        assert bits is not None
        chosen = {"encoder", "decoder", "model"}
        if self.options.quantize_vision:
            chosen.add("vision")
        for graph in graphs:
            if graph.name not in chosen:
                continue
            stem = f"{graph.name}.{bits}"
            location = f"{stem}.safetensors"
            quantiser = Quantiser(int(bits.removeprefix("int")), location, self.read)
            tables = Tables(location)
            _, builder, outputs = self._lowered(graph, quantiser, tables)
            streamed = [_streamed(name, values) for name, values in tables.values.items()]
            written = self._streamed_into(location, [*quantiser.streamed(), *streamed])
            self._save(f"{stem}.onnx", graph, builder, outputs, written)

    def _lowered(
        self, graph: Graph, quantiser: Quantiser | None, tables: Tables
    ) -> tuple[Graph, Builder, list[str]]:
        builder = Builder(graph.name, self.options.opset, tables)
        constants = {target: self._constant(graph, target, tables) for target in graph.constants}
        return graph, builder, Lowering(graph, builder, constants, quantiser).run(OPERATORS)

    def _constant(self, graph: Graph, target: str, tables: Tables) -> list[Initializer]:
        constant = graph.constants[target]
        if isinstance(constant, Folded):
            values = constant.compute(*(self.read(name).float() for name in constant.parts))
            return [tables.add(graph.name, values.float())]
        parts = [self.places[name] for name in constant.parts]
        return of_weights(target.removeprefix("model."), parts, WEIGHTS)

    def _streamed_into(self, name: str, tensors: Sequence[Streamed]) -> Mapping[str, Located]:
        """Writes a file of constants, where there are any."""
        place = self.folder / name
        if not tensors:
            return {}
        self.progress(f"onnx/{name}")
        with place.open("wb") as file:
            write_safetensors(file, tensors)
        return located_in(place)

    def _save(
        self,
        name: str,
        graph: Graph,
        builder: Builder,
        outputs: Sequence[str],
        written: Mapping[str, Located],
    ) -> None:
        self.progress(f"onnx/{name}")
        bounds = {DIMS[dim]: list(pair) for dim, pair in sorted(graph.bounds.items())}
        model = builder.finish(
            [_info(wire) for wire in graph.inputs],
            [_info(wire) for wire in graph.outputs],
            outputs,
            {
                "vlmc.bounds": json.dumps(bounds, sort_keys=True),
                "vlmc.image_tokens": str(self.image_tokens),
                "vlmc.cache": "in place" if _in_place(builder, graph) else "growing",
            },
            written,
        )
        (self.folder / name).write_bytes(model.SerializeToString(deterministic=True))


def _in_place(builder: Builder, graph: Graph) -> bool:
    """Whether every node that reads a cache can write the newest tokens into it."""
    readers = [node for node in builder.nodes if any(PAST in name for name in node.input)]
    kinds = {node.op_type for node in readers}
    return bool(readers) and kinds == {"GroupQueryAttention"}


def _streamed(name: str, values: Tensor) -> Streamed:
    return Streamed(name, values.dtype, tuple(values.shape), lambda: values)


def _info(wire: Wire) -> Any:
    dims = [DIMS[dim] if isinstance(dim, str) else dim for dim in wire.dims]
    return helper.make_tensor_value_info(wire.name, TYPES[NUMBERS[wire.number]], dims)
