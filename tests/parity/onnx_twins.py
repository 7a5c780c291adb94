"""Twins as ONNX graphs and as models of torch, on the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from vlmc.builder.model import instantiate
from vlmc.builder.seed import initialise
from vlmc.capture.capture import capture
from vlmc.capture.graph import Graph
from vlmc.capture.stages import Layout
from vlmc.emit.onnx.writer import Writer, link_weights, silent
from vlmc.emit.options import Options
from vlmc.ir import Arch
from vlmc.passes.pipeline import optimise
from vlmc.pipeline import load_spec, resolve
from vlmc.runtime.describe import describe
from vlmc.runtime.design import Design
from vlmc.runtime.engines.eager_engine import EagerEngine
from vlmc.runtime.engines.engine import Row
from vlmc.runtime.engines.onnx_engine import OnnxEngine

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Twin:
    """A design of laptop size."""

    arch: Arch
    design: Design
    captured: tuple[Graph, ...]
    graphs: tuple[Graph, ...]
    """`captured`, optimised for ONNX."""
    model: Any

    @property
    def eager(self) -> EagerEngine:
        return EagerEngine(self.model, self.design)

    def write(self, weights: Path, folder: Path, opset: int = 23) -> Path:
        """The graphs over `weights`, which lie beside `folder`."""
        link_weights(weights, folder)
        Writer(self.arch, weights, folder, Options(opset=opset), silent).write(self.graphs)
        return folder

    def engine(self, folder: Path, variant: str | None = None) -> OnnxEngine:
        return OnnxEngine(
            folder,
            serving=self.design.serving,
            start_token=self.design.start_token,
            variant=variant,
            threads=1,
        )

    def pixels(self, images: int = 3) -> Any:
        sizes = {"images": images, "frames": min(2, self.design.frames)}
        dims = [sizes.get(d, 1) if isinstance(d, str) else d for d in Layout(self.arch).pixels.dims]
        return np.random.default_rng(0).standard_normal(dims, np.float32)

    def rows(self, counts: list[int]) -> Any:
        """Prompts of unlike lengths with so many images; a function from the features."""
        draw = np.random.default_rng(1)
        tokens = self.arch.tokens.per_image
        within = self.design.serving in ("sequence", "encoder_decoder")
        drawn: list[tuple[Any, ...]] = []
        for index, count in enumerate(counts):
            places = count * tokens if within else 0
            ids = draw.integers(3, self.design.vocabulary - 5, 5 + 3 * index + places)
            visual = np.zeros(len(ids), np.bool_)
            visual[1 : 1 + places] = True
            seen = None
            if self.design.serving == "cross_attention":
                # The first words are before every image, and look at none.
                seen = np.zeros((len(ids), count), np.bool_)
                seen[2:] = np.arange(count) == count - 1
            drawn.append((ids, visual, seen, count))

        def with_features(features: list[Any]) -> list[Row]:
            return [
                Row(ids=ids, visual=visual, features=tuple(features[:count]), seen=seen)
                for ids, visual, seen, count in drawn
            ]

        return with_features


@cache
def twin(name: str) -> Twin:
    """The twin of a spec, with weights of which none is as simple as 0 or 1."""
    spec = load_spec(ROOT / "specs" / f"{name}.yaml")
    arch = resolve(spec, mini=True)
    model = instantiate(arch, device="cpu").eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    initialise(model, seed=0, open_gates=True)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)
    captured = tuple(capture(arch, cache="growing"))
    graphs = tuple(optimise(graph, "onnx") for graph in captured)
    return Twin(arch, describe(spec.mini(), arch), captured, graphs, model)


def relative(wanted: Any, got: Any) -> float:
    """The largest difference, relative to the largest number."""
    assert wanted.shape == got.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def operators(path: Path) -> set[str]:
    """The kinds of nodes in a graph."""
    return {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
