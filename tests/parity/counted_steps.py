"""Runs a compiled step of a single row over every number of slots, and prints the most that malloc
was asked for within one but the first: `[times, times for 1 KiB and more, inputs]`.

It is started with the counter of counted.c in front of malloc, and given a folder with aoti/ and
weights/.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import torch

from vlmc.runtime.engines.aoti_program import AotiProgram
from vlmc.runtime.engines.graph_files import GraphFile, read_graphs
from vlmc.runtime.engines.mapped_weights import MappedWeights


def given(graph: GraphFile, numbers: dict[str, torch.dtype], slots: int) -> list[torch.Tensor]:
    """Zeros for every input but the slots."""
    found: list[torch.Tensor] = []
    for wire in graph.inputs:
        shape = [slots if isinstance(size, str) else size for size in wire.dims]
        found.append(torch.zeros(shape, dtype=numbers[wire.number]))
    found[2] = torch.arange(slots)
    return found


def main(folder: Path) -> None:
    # With a single thread OpenMP makes its team anew for every loop.
    torch.set_num_threads(2)
    graphs = read_graphs(folder / "aoti")
    number = getattr(torch, graphs.dtype)
    graph = graphs.graphs["decode_one"]
    program = AotiProgram(graph, MappedWeights(folder / "weights", graphs.folder, number, "cpu"))
    most = graph.most("slots")
    assert most is not None
    inputs = given(graph, {"int": torch.int64, "float": number}, most)
    counter = ctypes.CDLL(None)
    asked: list[tuple[int, int]] = []
    for slots in range(2, most):
        inputs[2].resize_(slots)
        counter.start_counting()
        program(inputs)
        counter.stop_counting()
        asked.append((counter.counted(), counter.counted_large()))
    print(json.dumps([*map(max, zip(*asked[1:], strict=True)), len(inputs)]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
