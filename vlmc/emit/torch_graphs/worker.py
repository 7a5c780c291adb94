"""A process that compiles exported programs into packages.

It reads lines `[program, package]` and answers each with `[features, changes]`: the CPU features
that the code needs, and what was done in the program for this device, by name.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.emit.torch_graphs.archive import private_folders, rewrite
from vlmc.emit.torch_graphs.attention import attentions, own_attention
from vlmc.emit.torch_graphs.cpu import features
from vlmc.emit.torch_graphs.onednn import reads_many_rows, use_onednn
from vlmc.passes.effect import counted
from vlmc.passes.stored import STORED
from vlmc.runtime.engines.compiled_program import is_step
from vlmc.runtime.engines.kept_memory import kept_memory
from vlmc.runtime.engines.one_query import sum_attention


def main() -> None:
    settings = json.loads(sys.argv[1])
    # Only answers go to standard output: compilers write there too.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        program, package = map(Path, json.loads(line))
        answer = compile_program(program, package, settings)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def compile_program(
    path: Path, package: Path, settings: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Compiles the program at `path` into `package`; the CPU features that its code needs, and what
    was done for this device, by name."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    program: Any = torch.export.load(path)
    if settings["device"] != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, settings["device"])
    changes = _for_cpu(program, path.stem, settings) if settings["device"] == "cpu" else {}
    program._state_dict = {
        name: nn.Parameter(_unfilled(value), requires_grad=False)
        for name, value in program.state_dict.items()
    }
    program._example_inputs = (tuple(_inputs(program)), {})
    chosen = {
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.enable_line_tables": False,
        "aot_inductor.enable_frame_pointer": False,
        # The compiler takes every extent that varies to be 2 at least; its code is right for 1 too.
        "aot_inductor.check_lowerbound": False,
        # A constant of few numbers would otherwise become a literal in the code.
        "always_keep_tensor_constants": True,
        "cpp.march": settings["level"],
        # As many threads as torch has where the package runs, and not as this process has.
        "cpp.dynamic_threads": True,
        **(STORED if path.stem == "decode_one" else {}),
        **(kept_memory() if is_step(path.stem) and settings["device"] == "cpu" else {}),
        **(own_attention() if "own_attention" in changes else {}),
    }
    inductor: Any = import_module("torch._inductor")
    known: Any = import_module("torch._inductor.config")
    with known.patch({k: v for k, v in chosen.items() if _known(known, k)}):
        inductor.aoti_compile_and_package(program, package_path=str(package))
        needed = features(settings["level"])
    rewrite(package, private_folders(Path(cache_dir())))
    return needed, changes


def _for_cpu(program: Any, name: str, settings: dict[str, Any]) -> dict[str, str]:
    """What a program for other devices, too, has done otherwise on a CPU."""
    changes: dict[str, str] = {}
    if is_step(name):
        if attention := sum_attention(program.graph):
            text = f"{counted(attention, 'attention')} of one token as sums in fp32"
            changes["sum_attention"] = text
    elif attention := attentions(program.graph):
        text = f"{counted(attention, 'attention')} of many queries by code of our own"
        changes["own_attention"] = text
    # Here and not as a pass before: torch cannot write such a call into a program's file.
    if settings["onednn"] and reads_many_rows(name):
        products = use_onednn(program.graph.nodes)
        if products:
            text = f"{counted(products, 'product')} of fp32 matrices by oneDNN"
            changes["onednn_products"] = text
    return changes


def _known(config: Any, key: str) -> bool:
    """Whether this torch has the setting."""
    for name in key.split("."):
        if not hasattr(config, name):
            return False
        config = getattr(config, name)
    return True


def _unfilled(like: Tensor) -> Tensor:
    """Memory for a weight, of which nothing is ever touched: the compiler looks at its shape."""
    size = max(like.numel() * like.element_size(), 1)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    held = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.uint8)
    return held[: like.numel() * like.element_size()].view(like.dtype).view(like.shape)


def _inputs(program: Any) -> list[Any]:
    """The program's own symbolic inputs; of them the compiler reads how many there are."""
    names = set(program.graph_signature.user_inputs)
    return [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]


if __name__ == "__main__":
    main()
