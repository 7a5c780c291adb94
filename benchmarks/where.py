"""Says where the time of a build's graphs goes, by operator: an image, a prompt, a step.

    python benchmarks/where.py BUILD [--prompt 229] [--runs 12] [--suffix .int8]
    python benchmarks/where.py BUILD --engine compile

The build is one whose vision stands in the sequence. Its graphs are filled with random numbers; the
figures are milliseconds of one run, with the profile of ONNX Runtime (medians by operator) or of
torch (means, by operator of torch and kernel of its compiler) on, which costs some microseconds for
each call.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from contenders import threads

NUMBERS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


def filled(session: Any, extents: dict[str, int]) -> dict[str, Any]:
    """Random inputs; an extent of a name that is not known is 1."""
    draw = np.random.default_rng(0)
    given: dict[str, Any] = {}
    for one in session.get_inputs():
        shape = [e if isinstance(e, int) else extents.get(e, 1) for e in one.shape]
        number = NUMBERS[one.type]
        given[one.name] = (
            draw.standard_normal(shape).astype(number)
            if number is np.float32
            else np.ones(shape, number)
        )
    return given


def told(path: Path, extents: dict[str, int], runs: int) -> None:
    """Prints the operators of a graph that take most, and what all of them take."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        given = filled(session, extents)
        for _ in range(runs):
            session.run(None, given)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    each = len(nodes) // runs
    times: dict[str, list[float]] = defaultdict(list)
    calls: Counter[str] = Counter(e["args"]["op_name"] for e in nodes[:each])
    for run in range(runs):
        sums: Counter[str] = Counter()
        for event in nodes[run * each : (run + 1) * each]:
            sums[event["args"]["op_name"]] += event["dur"] / 1e3
        for name, spent in sums.items():
            times[name].append(spent)
    medians = {name: statistics.median(spent) for name, spent in times.items()}
    print(f"\n{path.name}, {extents}: {sum(medians.values()):.1f} ms")
    for name, spent in sorted(medians.items(), key=lambda one: -one[1])[:6]:
        print(f"  {name:<28}{spent:>8.2f} ms in {calls[name]} calls")


def told_of_torch(build: Path, name: str, extents: dict[str, int], runs: int) -> None:
    """As `told`, for the graph `name` of compile/."""
    import torch
    from torch._inductor import config
    from torch.profiler import ProfilerActivity, profile

    from vlmc.runtime.engines.compiled_program import CompiledProgram
    from vlmc.runtime.engines.graph_files import read_graphs
    from vlmc.runtime.engines.mapped_weights import MappedWeights

    torch.set_num_threads(threads())
    inductor: Any = config
    inductor.cpp.enable_kernel_profile = True
    graphs = read_graphs(build / "compile")
    number = getattr(torch, graphs.dtype)
    weights = MappedWeights(build / "weights", build / "compile", number, "cpu")
    program = CompiledProgram(graphs.graphs[name], weights, "inductor", lambda _: None)
    given: list[torch.Tensor] = []
    for wire in graphs.graphs[name].inputs:
        shape = [extents.get(e, 1) if isinstance(e, str) else e for e in wire.dims]
        if wire.name == "slots":
            given.append(torch.arange(shape[0]))
        elif wire.number == "float":
            given.append(torch.randn(shape).to(number))
        else:
            given.append(torch.full(shape, extents["text"] - 1))
    with torch.inference_mode():
        for _ in range(3):
            program(given)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(runs):
                program(given)
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        spent[event.key] += event.self_cpu_time_total / 1e3 / runs
    print(f"\n{name}, {extents}: {sum(spent.values()):.1f} ms")
    for key, milliseconds in spent.most_common(6):
        print(f"  {key[:60]:<60}{milliseconds:>8.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--prompt", type=int, default=229, help="Tokens of the prompt.")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--suffix", default="", help=".int8 or .int4 for quantised decoders.")
    parser.add_argument("--engine", choices=("onnx", "compile"), default="onnx")
    options = parser.parse_args()
    folder, prompt = options.build / "onnx", options.prompt
    if options.engine == "compile":
        sizes = {"text": prompt, "slots": prompt}
        for name in ("vision", "prefill", "decode_one"):
            told_of_torch(options.build, name, sizes, options.runs)
        return
    names = ("sequence_length", "past_sequence_length", "total_sequence_length")
    told(folder / "vision.onnx", {}, options.runs)
    if not options.suffix:  # a quantised decoder's cache is filled in place, step by step
        extents = dict(zip(names, (prompt, 0, prompt), strict=True))
        told(folder / "decoder.onnx", extents, options.runs)
    extents = dict(zip(names, (1, prompt, prompt + 1), strict=True))
    told(folder / f"decoder{options.suffix}.onnx", extents, options.runs)


if __name__ == "__main__":
    main()
