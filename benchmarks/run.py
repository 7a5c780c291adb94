"""Compares what vlmc builds with what transformers runs: same weights, same inputs, same threads.

    python benchmarks/run.py [--systems llava-1.5 idefics blip-2] [--dtypes fp32 bf16]
                               [--rounds 7] [--tokens 24] [--images 4]
                               [--work FOLDER] [--stages build export compare]

Each contender is loaded into a process of its own and waits. Then, in rounds, each is asked in turn
for a first token, for further tokens and for a batch of images, and so is the host's memory for the
speed at which it reads. Figures are medians over the rounds. It takes about an hour, most of it to
build; with --work, what an earlier run built is there for the later stages.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
VLMC = [sys.executable, str(HERE.parent / "cli.py")]

FP32 = (
    "memory",
    "transformers eager",
    "transformers compile",
    "transformers onnx",
    "vlmc eager",
    "vlmc compile",
    "vlmc aoti",
    "vlmc onnx",
    "vlmc onnx-int8",
    "vlmc onnx-int4",
)
BF16 = (
    "memory",
    "transformers eager",
    "transformers compile",
    "vlmc eager",
    "vlmc compile",
    "vlmc aoti",
)
CONTENDERS = {"fp32": FP32, "bf16": BF16}
TORCH = {"fp32": "float32", "bf16": "bfloat16"}


class Worker:
    """A contender in its own process."""

    def __init__(self, name: str, system: str, folder: Path, dtype: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), name, system, str(folder), TORCH[dtype]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.error = self._answer().get("error")
        self.times: dict[str, list[float]] = {}
        self.tokens: list[int] = []

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process died"}

    def ask(self, **command: Any) -> dict[str, Any]:
        """What the process answers to a command."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {"error": "the process died"}
        return self._answer()

    def measure(self, what: str, keep: bool, **command: Any) -> None:
        """Asks once; keeps the time unless it warmed up."""
        if self.error or self.times.get(what) == []:
            return
        answer = self.ask(do=what, **command)
        if "error" in answer:
            self.times[what] = []
            print(f"  {self.name}: {what}: {answer['error']}", file=sys.stderr)
            return
        if what == "decode":
            self.tokens = answer["tokens"]
        if keep:
            self.times.setdefault(what, []).append(answer["seconds"])

    def median(self, what: str) -> float | None:
        """Median seconds, None where it could not be measured."""
        return statistics.median(self.times[what]) if self.times.get(what) else None

    def stop(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def called(*command: str) -> tuple[float, str]:
    """Seconds and standard output of a command that must succeed."""
    begun = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}:\n{run.stderr[-3000:]}")
    return time.perf_counter() - begun, run.stdout


def disk(folder: Path) -> int:
    """Bytes that a folder takes on disk, each file once however many names it has."""
    files = {(s.st_dev, s.st_ino): s.st_size for s in map(os.stat, _files(folder))}
    return sum(files.values())


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def built(name: str, folder: Path, dtypes: list[str]) -> None:
    """Checkpoint and builds of one system, with the time and disk that each took."""
    folder.mkdir(parents=True, exist_ok=True)
    make = (
        "import sys, torch; from pathlib import Path; from contenders import system_of; "
        f"system_of({name!r}).save(Path({str(folder)!r}), torch.float32)"
    )
    subprocess.run([sys.executable, "-c", make], cwd=HERE, check=True, capture_output=True)
    for dtype in dtypes:
        build = folder / f"build-{dtype}"
        artifacts = "model,compile,onnx,aoti" if dtype == "fp32" else "model,compile,aoti"
        command = [*VLMC, "build", str(folder / f"{name}.yaml"), "--output", str(build)]
        command += ["--checkpoint", str(folder / "checkpoint"), "--dtype", dtype]
        command += ["--artifacts", artifacts]
        seconds, _ = called(*command)
        weights, whole = disk(build / "weights"), disk(build)
        print(
            f"  build {dtype} ({artifacts}): {seconds:.0f} s; weights {weights / 1e6:,.1f} MB, "
            f"everything {whole / 1e6:,.1f} MB = {whole / weights:.4f} x"
        )
        for bits in ("int8", "int4") if dtype == "fp32" else ():
            words = [*command, "--output", str(folder / f"build-{bits}"), "--quantize", bits]
            seconds, _ = called(*words, "--artifacts", "model,onnx")
            print(f"  build {bits} (model,onnx): {seconds:.0f} s")


def exports(name: str, folder: Path) -> None:
    """Time after imports to write the graphs."""
    for label, arguments in {
        "transformers": ("transformers",),
        "transformers fused": ("transformers", "cpu"),
        "vlmc": ("vlmc",),
    }.items():
        tool, *fusions = arguments
        script = [sys.executable, str(HERE / "export.py"), tool, name, str(folder), *fusions]
        found = json.loads(called(*script)[1].strip().splitlines()[-1])
        for graph, one in found.items():
            figure = f"{one['seconds']:.1f} s" if "seconds" in one else f"fails: {one['error']}"
            print(f"  ONNX export, {label}, {graph}: {figure}")


def compared(name: str, folder: Path, dtype: str, options: argparse.Namespace) -> None:
    """Runs all contenders in turn and prints a table."""
    workers = [Worker(one, name, folder, dtype) for one in CONTENDERS[dtype]]
    for turn in range(options.rounds + 1):
        for what, command in {
            "first": {},
            "decode": {"tokens": options.tokens},
            "vision": {"images": options.images},
        }.items():
            for worker in workers:
                worker.measure(what, turn > 0, **command)
    print(f"\n{name}, {dtype}")
    print(f"{'':<24}{'first ms':>10}{'ms/token':>10}{'images/s':>10}{'peak MB':>9}  greedy tokens")
    reference = next(w.tokens for w in workers if w.name == "transformers eager")
    for worker in workers[1:]:
        memory = worker.ask(do="memory").get("megabytes") if not worker.error else None
        first, step, vision = (worker.median(what) for what in ("first", "decode", "vision"))
        same = sum(a == b for a, b in zip(worker.tokens, reference, strict=False))
        note = worker.error or (f"{same}/{len(reference)} equal" if worker.tokens else "-")
        figures = (
            _figure(first and 1e3 * first, 10),
            _figure(step and 1e3 * step, 10),
            _figure(vision and options.images / vision, 10),
            _figure(memory, 9, 0),
        )
        print(f"{worker.name:<24}{''.join(figures)}  {note}")
    targets(workers, name, folder, dtype)
    for worker in workers:
        worker.stop()


def _figure(value: float | None, width: int, digits: int = 2) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width},.{digits}f}"


def targets(workers: list[Worker], name: str, folder: Path, dtype: str) -> None:
    """Ratios against the best of transformers, and what of the memory's speed a step uses."""
    theirs = [w for w in workers if w.name.startswith("transformers")]
    ours = [w for w in workers if w.name.startswith("vlmc") and "-int" not in w.name]
    for what, wanted in {"decode": 2.0, "first": 1.3, "vision": 1.1}.items():
        mine = min((w.median(what) or float("inf"), w.name) for w in ours)
        other = min((w.median(what) or float("inf"), w.name) for w in theirs)
        ratio = other[0] / mine[0]
        verdict = "met" if ratio >= wanted else "MISSED"
        print(f"  {what}: {mine[1]} is {ratio:.2f} x {other[1]} (target {wanted}): {verdict}")
        if what == "decode":
            bandwidth = 2**30 / (workers[0].median("decode") or 1) / 1e9
            used = step_bytes(folder / f"{name}.yaml", dtype) / mine[0] / 1e9
            share = used / bandwidth
            print(
                f"    reads {used:.1f} GB/s of the {bandwidth:.1f} that this host reads: "
                f"{share:.0%} (target 80%): {'met' if share >= 0.8 else 'MISSED'}"
            )
    if dtype == "fp32":
        best = min(w.median("decode") or float("inf") for w in ours)
        for bits in ("int8", "int4"):
            small = next(w for w in workers if w.name == f"vlmc onnx-{bits}")
            ratio = best / (small.median("decode") or float("inf"))
            verdict = "met" if ratio >= 2.5 else "MISSED"
            print(f"  {bits} decode: {ratio:.2f} x our best fp32 (int8 target 2.5): {verdict}")


def step_bytes(spec: Path, dtype: str) -> int:
    """Bytes of the weights that one token reads: those of the graph that decodes one row. Of an
    embedding it reads one row, unless it is the head, too."""
    from vlmc.capture.capture import capture
    from vlmc.pipeline import load_spec, resolve

    arch = resolve(load_spec(spec))
    graph = next(g for g in capture(arch, cache="static") if g.name == "decode_one")
    linear = torch.ops.aten.linear.default
    read = {
        node.target if node.op == "get_attr" else node.name
        for call in graph.program.graph.nodes
        if call.target is linear
        for node in call.args[1:2]
    }
    targets = dict(graph.program.graph_signature.inputs_to_parameters)
    names = {targets[name] for name in read}
    count = sum(graph.program.state_dict[name].numel() for name in names)
    return count * (4 if dtype == "fp32" else 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", default=["llava-1.5", "idefics", "blip-2"])
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--work", type=Path, help="Keep checkpoints and builds here.")
    stages = ("build", "export", "compare")
    parser.add_argument("--stages", nargs="+", default=list(stages), choices=stages)
    options = parser.parse_args()
    packages = ("torch", "transformers", "onnxruntime")
    used = ", ".join(f"{package} {version(package)}" for package in packages)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {used}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        for name in options.systems:
            print(f"\n{name}")
            if "build" in options.stages:
                built(name, work / name, options.dtypes)
            if "export" in options.stages:
                exports(name, work / name)
            for dtype in options.dtypes if "compare" in options.stages else ():
                compared(name, work / name, dtype, options)


if __name__ == "__main__":
    main()
