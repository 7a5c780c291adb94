"""What a plan says that the backward pass needs is what crosses torch's own joint graph, in which
AOTAutograd traces forward and backward pass as one, before any compiler chooses what to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import aot_function, default_partition, nop
from torch import nn
from torch._functorch import config
from torch._subclasses import FakeTensorMode
from torch.func import functional_call

from vlmc.analysis.analyse import FORMATS, Precision, analyse
from vlmc.analysis.operators import FusedAttention, Memory, storage_key
from vlmc.analysis.run import built
from vlmc.analysis.steps import training_step
from vlmc.analysis.trace import Recorder
from vlmc.ir import Arch, Role
from vlmc.pipeline import load_spec
from vlmc.resolver import resolve

ROOT = Path(__file__).parent.parent.parent
BATCH, TEXT, IMAGES = 3, 24, 2
LOSS = 4
"""Bytes: the end of the forward pass, which the backward pass begins with and does not read."""
# On a CPU torch keeps a layer norm's means in bf16, on a GPU, and so in a plan, in fp32.
CASES: list[tuple[str, Precision]] = [
    ("blip2", "fp32"),
    ("blip2-flan-t5", "fp32"),
    ("flamingo-3b", "fp32"),
    ("idefics-9b", "fp32"),
    ("llava-1.5", "fp32"),
    ("llava-1.5", "bf16"),
    ("visualbert", "fp32"),
]


class Loss(nn.Module):
    """A training step's forward pass, as the planner runs it, of whatever weights it is given."""

    def __init__(self, arch: Arch, trained: tuple[Role, ...]) -> None:
        super().__init__()
        self.model: Any = built(arch, trained)
        self.step = training_step(arch, frames=1)

    def forward(self, given: dict[str, Any]) -> Any:
        with FusedAttention():
            return self.step.run(self.model, given, Recorder(self.model, Memory()))


@pytest.mark.parametrize(("system", "precision"), CASES)
def test_what_is_saved_for_the_backward_pass_crosses_the_joint_graph(
    system: str, precision: Precision
) -> None:
    arch = resolve(load_spec(ROOT / "specs" / f"{system}.yaml"), mini=True)
    trained = tuple(node.role for node in arch.nodes if not node.frozen and node.count)
    report = analyse(arch, precision=precision, trained=trained)
    sizes = {"batch": BATCH, "text": TEXT, "images": IMAGES, "tokens": report.tokens}
    planned = sum(report.blocks[place].saved.none(**sizes) for place in report.order)
    crossing, shapes = crossed(arch, trained, FORMATS[precision], sizes)
    # Autograd keeps what `gather` reads, of which its backward pass needs the shape alone.
    assert planned == crossing + shapes + LOSS


def crossed(
    arch: Arch, trained: tuple[Role, ...], dtype: torch.dtype, sizes: dict[str, int]
) -> tuple[int, int]:
    """Bytes that the forward half of the joint graph makes and the backward half reads, each
    storage once; and of what else trained calls of `gather` read."""
    seen = sizes["images"] * sizes["tokens"]
    more = {"visual": seen, "sequence": sizes["text"] + seen}
    every = {**sizes, **more, "all_images": sizes["batch"] * sizes["images"]}
    torch.set_default_dtype(dtype)
    try:
        loss = Loss(arch, trained)
        with torch.device("meta"):
            given = dict(loss.step.inputs(every))
    finally:
        torch.set_default_dtype(torch.float32)
    parameters = dict(loss.named_parameters())
    found: list[tuple[int, int]] = []

    def cut(joint: Any, inputs: Any, **options: Any) -> Any:
        halves = default_partition(joint, inputs, **options)
        found.append(_crossing(halves[0], joint, options["num_fwd_outputs"]))
        return halves

    def run(*values: Any) -> Any:
        weights = dict(zip(parameters, values, strict=False))
        named = dict(zip(given, values[len(weights) :], strict=True))
        return functional_call(loss, weights, (named,))

    traced = aot_function(run, fw_compiler=nop, bw_compiler=nop, partition_fn=cut)
    with FakeTensorMode(), config.patch(cse=False):  # an eager step computes alike things again
        traced(
            *(
                torch.empty_strided(
                    one.shape, one.stride(), dtype=one.dtype, device="cpu"
                ).requires_grad_(one.requires_grad)
                for one in (*parameters.values(), *given.values())
            )
        )
    return found[0]


def _crossing(forward: Any, joint: Any, outputs: int) -> tuple[int, int]:
    nodes = list(forward.graph.nodes)
    there = {_storage(node) for node in nodes if node.op == "placeholder"}
    kept = dict(_sized(node) for node in nodes[-1].args[0][outputs:])
    calls = [node for node in joint.graph.nodes if node.op == "call_function"]
    added = {node.args[2] for node in calls if node.target is torch.ops.aten.scatter_add.default}
    shaped = dict(
        _sized(node.args[0])
        for node in calls
        if node.target is torch.ops.aten.gather.default and node.args[2] in added
    )
    return (
        sum(size for key, size in kept.items() if key not in there),
        sum(size for key, size in shaped.items() if key not in there and key not in kept),
    )


def _storage(node: Any) -> int:
    return storage_key(node.meta["val"])


def _sized(node: Any) -> tuple[int, int]:
    return _storage(node), node.meta["val"].untyped_storage().nbytes()
