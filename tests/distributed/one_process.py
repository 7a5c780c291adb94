"""The same step by one process, through the forward pass of model.py itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmc.runtime.parallel.batches import Row, micro_batches
from vlmc.runtime.parallel.parts import Parts, role_of


def loaded(folder: Path) -> Any:
    """The module of a build's model.py."""
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model"] = module
    spec.loader.exec_module(module)
    return module


Answer = tuple[float, dict[str, Tensor]]
_known: dict[str, Answer] = {}


def gradients(work: dict[str, Any], dtype: torch.dtype = torch.float32) -> Answer:
    """Loss and gradients of all sequences in one batch, reckoned once for all plans."""
    rows = [
        (row.words, row.labels, *(image.numpy().tobytes() for image in row.images))
        for row in work["rows"]
    ]
    key = repr((work["folder"], sorted(work["plan"]["trained"]), rows, dtype))
    if key not in _known:
        _known[key] = _gradients(work, dtype)
    return _known[key]


def _gradients(work: dict[str, Any], dtype: torch.dtype) -> Answer:
    folder = Path(work["folder"])
    module = loaded(folder)
    model = module.build()
    module.load_weights(model, folder / "weights")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(role_of(name) in work["plan"]["trained"])
    given = call(work["parts"], work["rows"])
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    loss = model.to(dtype)(**given).loss
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def call(parts: Parts, rows: list[Row]) -> dict[str, Any]:
    """What model.py's forward pass takes for the rows."""
    (data,) = micro_batches(parts, rows, data=1, replica=0, size=len(rows))
    images: Tensor | None = data["images"]
    given = {"attention_mask": data["attention_mask"], "labels": data["labels"]}
    given["input_ids"] = data["input_ids"]
    shown = sum(len(row.images) for row in rows)
    if parts.fusion == "gated_cross_attention":
        given["pixel_values"] = data["images"].unflatten(0, (len(rows), -1))
    elif parts.fusion == "single_stream":
        given["visual_embeds"] = data["images"].reshape(len(rows), -1, parts.image[-1])
        given["visual_attention_mask"] = data["visual_mask"]
    elif shown:
        given["pixel_values"] = torch.stack([image for row in rows for image in row.images])
    assert images is not None
    return given
