"""Gradients of weights that a schedule puts off (zero_bubble), where PyTorch's own way fails."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.pipelining import PipelineStage

from vlmc.runtime.parallel.untyped import PIPELINING


class PuttingOff(PipelineStage):
    """A stage on which weights may act at several places of what its inputs lead to.

    PyTorch 2.13 groups weights by the places where they meet the gradients of inputs. Embeddings
    of words, read by the first gated block and by the residual around it, meet them twice: the way
    from one place to the other crosses places of other groups, freed by whoever goes first, and
    such a weight can be in two groups and be counted twice."""

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        if backward_type != "weight":
            whole: Any = super()
            return whole.backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        # The pass for inputs, which comes before, has told FSDP2 to hold gradients back.
        stage: Any = self.submod
        groups = together(apart(bwd_kwargs["param_groups"]), stage.recomputed)
        weights = stage.parameters()
        # The graph goes with the groups, after all of them.
        return PIPELINING.stage_backward_weight(weights, groups, retain_graph=True), None


def apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups with each weight in the first that has it alone: any of them knows all places
    where it acts."""
    seen: set[Any] = set()
    for group in groups:
        group["params"] = group["params"] - seen
        seen |= group["params"]
    return [group for group in groups if group["params"]]


def together(groups: list[dict[str, Any]], recomputed: list[nn.Module]) -> list[dict[str, Any]]:
    """The groups, one for all weights of a module that is computed again: PyTorch would do so for
    each of its groups. What reaches a place from another of the same group is not counted, as
    PyTorch puts the gradient that was found for the place there."""
    of = {id(weight): at for at, module in enumerate(recomputed) for weight in module.parameters()}
    found: list[dict[str, Any]] = []
    whole: dict[int, dict[str, Any]] = {}
    for group in groups:
        at = next((of[id(one.variable)] for one in group["params"] if id(one.variable) in of), None)
        if at is None or at not in whole:
            found.append(group)
        if at is not None:
            first = whole.setdefault(at, group)
            if first is not group:
                for name in ("params", "intermediates", "grads"):
                    first[name] = type(first[name])([*first[name], *group[name]])
    return found
