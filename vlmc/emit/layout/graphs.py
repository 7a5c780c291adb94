"""The graphs of a build under other file names, over the same weights on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import onnx

from vlmc.diagnostics import UsageError
from vlmc.emit.carry import link

BATCH = "batch_size"
"""How transformers.js knows the batch among the extents of an empty cache; any other is 0 to it."""

_ONNX: Any = onnx  # its reading and writing are typed in part only


def renamed(source: Path, target: Path) -> None:
    """Writes the graph of `source` to `target`, its rows called `batch_size`. The files that hold
    its weights get a second name beside `target`; nothing is copied where the file system has hard
    links.

    Raises UsageError where the graph is not there.
    """
    if not source.is_file():
        raise UsageError(f"{source}: there is no such graph in this build")
    model = cast("onnx.ModelProto", _ONNX.load(str(source), load_external_data=False))
    rows = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for extent in value.type.tensor_type.shape.dim:
            if rows and extent.dim_param == rows:
                extent.dim_param = BATCH
    target.parent.mkdir(parents=True, exist_ok=True)
    for location in sorted(set(_locations(model))):
        data = target.parent / location
        if not data.exists():
            data.parent.mkdir(parents=True, exist_ok=True)
            link(source.parent / location, data)
    _ONNX.save(model, str(target))


def _locations(model: onnx.ModelProto) -> Iterator[str]:
    """The files of a graph's weights, relative to its own folder."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                yield entry.value
