"""Runs a compiled step over every number of slots, and prints the most that malloc was asked for
within one but the first, and what torch's allocator gave within one more: `[times, times for 1 KiB
and more, blocks, inputs]`.

It is started with the counter of counted.c in front of malloc, and given a folder with aoti/ and
weights/, the name of a graph, and rows.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from vlmc.runtime.engines.aoti_program import AotiProgram
from vlmc.runtime.engines.graph_files import GraphFile, read_graphs
from vlmc.runtime.engines.mapped_weights import MappedWeights

IMAGES, TOKENS = 3, 4


def given(graph: GraphFile, number: torch.dtype, rows: int, slots: int) -> list[torch.Tensor]:
    """Zeros for every input but the slots."""
    extents = {
        "batch": rows,
        "slots": slots,
        "images": IMAGES,
        "visual": IMAGES * TOKENS,
        "source": TOKENS,
    }
    numbers = {"int": torch.int64, "float": number, "bool": torch.bool}
    found: list[torch.Tensor] = []
    for wire in graph.inputs:
        shape = [extents[size] if isinstance(size, str) else size for size in wire.dims]
        found.append(torch.zeros(shape, dtype=numbers[wire.number]))
    found[2] = torch.arange(slots)
    return found


def main(folder: Path, name: str, rows: int) -> None:
    # With a single thread OpenMP makes its team anew for every loop.
    torch.set_num_threads(2)
    graphs = read_graphs(folder / "aoti")
    number = getattr(torch, graphs.dtype)
    graph = graphs.graphs[name]
    program = AotiProgram(graph, MappedWeights(folder / "weights", graphs.folder, number, "cpu"))
    most = graph.most("slots")
    assert most is not None
    inputs = given(graph, number, rows, most)
    counter = ctypes.CDLL(None)
    asked: list[tuple[int, int]] = []
    for slots in (2, *range(2, most)):
        inputs[1].fill_(slots - 1)
        inputs[2].resize_(slots)
        counter.start_counting()
        program(inputs)
        counter.stop_counting()
        asked.append((counter.counted(), counter.counted_large()))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        program(inputs)
    events: Any = found.profiler.kineto_results.events()
    blocks = sum(event.name() == "[memory]" and event.nbytes() > 0 for event in events)
    print(json.dumps([*map(max, zip(*asked[1:], strict=True)), blocks, len(inputs)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
