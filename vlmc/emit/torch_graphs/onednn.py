"""Products of fp32 matrices by oneDNN, where MKL is slow.

torch hands products of fp32 matrices to MKL, which takes its short paths on CPUs of Intel alone.
oneDNN, which torch brings too, chooses by what a CPU can do. Both read weights as they lie in
memory. Inductor lowers its product over constants alone: ahead of time that is what weights are,
in torch.compile they are inputs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vlmc.hardware.processor import processor_says


def reads_many_rows(graph: str) -> bool:
    """Whether a graph multiplies many rows at once. A step does not: what it would gain is little,
    and compiled ahead of time it was seen to lose half a megabyte at each call."""
    return "decode" not in graph


def onednn_is_faster(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine is of those where it was measured to be so."""
    backends: Any = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):
        return False
    vendor = processor_says("vendor_id", path=cpuinfo) or platform.processor()
    return "AuthenticAMD" in vendor


def use_onednn(nodes: Iterable[Any]) -> int:
    """Has every product of fp32 matrices in a torch.fx graph done by oneDNN; how many there are."""
    changed = 0
    for node in nodes:
        if node.op != "call_function" or node.target is not torch.ops.aten.linear.default:
            continue
        if node.meta["val"].dtype is not torch.float32:
            continue
        source, weight, bias = (*node.args, None)[:3]
        node.target = torch.ops.mkldnn._linear_pointwise.default
        node.args = (source, weight, bias, "none", [], "")  # nothing is fused with it
        changed += 1
    return changed
