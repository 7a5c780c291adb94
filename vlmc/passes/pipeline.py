"""Every pass in its order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch._export.verifier import SpecViolationError

from vlmc.capture.graph import Graph
from vlmc.capture.program import Draft
from vlmc.passes.dead_constants import dead_constants
from vlmc.passes.dead_layers import dead_layers
from vlmc.passes.effect import Effect, Pass
from vlmc.passes.fold_constants import fold_constants
from vlmc.passes.grouped_heads import grouped_heads
from vlmc.passes.image_masks import image_masks
from vlmc.passes.last_token import last_token, last_token_after_attention
from vlmc.passes.merge_projections import merge_projections
from vlmc.passes.no_ops import no_ops
from vlmc.passes.runtime_checks import runtime_checks
from vlmc.passes.shared_results import shared_results
from vlmc.passes.single_row import single_row
from vlmc.passes.verify import verify

Target = Literal["onnx", "quantised", "torch"]
"""quantised: ONNX with ONNX Runtime's own operators."""

ONNX: tuple[Pass, ...] = (
    dead_layers,
    dead_constants,
    no_ops,
    runtime_checks,
    image_masks,
    shared_results,
    fold_constants,
    last_token,
    merge_projections,
)

QUANTISED: tuple[Pass, ...] = tuple(
    last_token_after_attention if one is last_token else one for one in ONNX
)

TORCH: tuple[Pass, ...] = (
    dead_layers,
    dead_constants,
    no_ops,
    image_masks,
    shared_results,
    fold_constants,
    last_token,
    merge_projections,
    grouped_heads,
    single_row,
)


PASSES: dict[Target, tuple[Pass, ...]] = {"onnx": ONNX, "quantised": QUANTISED, "torch": TORCH}


def optimise(graph: Graph, target: Target, tell: Callable[[Effect], None] | None = None) -> Graph:
    """`graph` after the passes for its engine; `tell` hears of each that changed it."""
    return apply(graph, PASSES[target], tell)


def apply(
    graph: Graph, passes: Sequence[Pass], tell: Callable[[Effect], None] | None = None
) -> Graph:
    """`graph` after `passes`, verified after each of them."""
    before = graph
    for one in passes:
        draft = Draft(graph)
        text = one(draft)
        if not text:
            continue
        try:
            graph = draft.finish()
        except SpecViolationError as fault:
            raise AssertionError(
                f"pass {one.__name__} left graph {graph.name} invalid: {fault}"
            ) from fault
        verify(before, graph, one.__name__)
        if tell is not None:
            tell(Effect(one.__name__, graph.name, text))
    return graph
