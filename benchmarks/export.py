"""Writes the graphs of one system, by transformers' exporter or by vlmc; prints the seconds that it
took after imports, as JSON.

    python benchmarks/export.py transformers|vlmc SYSTEM FOLDER [fusions]
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import torch
from contenders import export_transformers, system_of, threads


def main() -> None:
    tool, name, folder, *fusions = sys.argv[1:]
    system, root = system_of(name), Path(folder)
    torch.set_num_threads(threads())
    if tool == "transformers":
        seconds = export_transformers(system, root, next(iter(fusions), None))
        print(json.dumps(seconds))
        return
    from vlmc.emit.onnx import write
    from vlmc.emit.options import Options
    from vlmc.pipeline import load_spec, resolve

    arch = resolve(load_spec(root / f"{name}.yaml"))
    target = root / "vlmc-onnx"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    begun = time.perf_counter()
    write(
        arch,
        root / "build-fp32" / "weights",
        target,
        options=Options(),
        progress=lambda *_: None,
    )
    print(json.dumps({"all": {"seconds": time.perf_counter() - begun}}))


if __name__ == "__main__":
    main()
