"""Attention of many queries, in C++ for graphs that are compiled ahead of time for a CPU.

torch's kernel multiplies by MKL or oneDNN, block after block, which takes it several times as long
as the products do at a CPU's rate: a fifth of an image in 16 bits. Here keys are turned to lie by
number of the head, so that a vector of keys is multiplied with a number of each of six queries;
scores of six queries stay in the cache.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vlmc.runtime.engines.kept_memory import has_vectors, teach

KERNEL, CALLS = (
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("attention.cpp", "attention.h")
)
MARK = {"vlmc_attention": hashlib.sha256(f"{CALLS}{KERNEL}".encode()).hexdigest()[:16]}


def attentions(graph: torch.fx.Graph) -> int:
    """How many in a graph the kernel can compute here."""
    if not has_vectors():
        return 0
    attention = torch.ops.aten.scaled_dot_product_attention.default
    return sum(node.target is attention and _known(*node.args[:4]) for node in graph.nodes)


def _known(query: Any, _: Any, value: Any, mask: Any = None) -> bool:
    """Whether torch's compiler calls its kernel for it, which ours stands in for."""
    if query.meta["val"].shape[-1] != value.meta["val"].shape[-1]:
        return False
    return mask is None or mask.meta["val"].ndim == 4


def own_attention() -> dict[str, Any]:
    """Options for torch's compiler, by which attention in a graph is computed by the kernel here if
    it is for a CPU. It stores what it makes by its options: hence the digest among them."""
    _teach()
    return {"aot_inductor.metadata": dict(MARK)}


@cache
def _teach() -> None:
    """Has torch's compiler for CPUs write the kernel into code where the options say so."""
    teach()
    common: Any = import_module("torch._inductor.codegen.common")
    cpu = common.device_codegens["cpu"]
    settings: Any = import_module("torch._inductor.config")
    taught: Any = cpu.cpp_wrapper_codegen
    wrapper: Any = taught.of_torch

    class OwnAttention(wrapper):
        of_torch = wrapper

        @staticmethod
        def create(*args: Any) -> Any:
            marked = MARK.items() <= settings.aot_inductor.metadata.items()
            return OwnAttention() if marked else taught.create(*args)

        def write_header(self) -> None:
            wrapper.write_header(self)
            if has_vectors():
                self.header.splice(CALLS)
                self.kernel_declarations.splice(KERNEL)

    cpu.cpp_wrapper_codegen = OwnAttention
