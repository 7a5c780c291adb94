"""Gradients of weights that a schedule puts off (zero_bubble), where PyTorch's own way fails."""

from __future__ import annotations

from typing import Any

import torch
import torch.autograd
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
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
        groups = [group for group in groups if not taken_in(group, stage.recomputed)]
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


def taken_in(group: dict[str, Any], recomputed: list[nn.Module]) -> bool:
    """Whether a group's gradients were made here: those of weights that act at several places, as a
    tied embedding does at the words and in the head. PyTorch goes from the one to the other through
    all that lies between, once more; but what each place was given is known. Not so of a weight
    that places reach by one way, such as a table that all blocks read: one place leads there
    through others, and PyTorch sees to it that nothing counts twice."""
    again = {id(weight) for module in recomputed for weight in module.parameters()}
    places: list[Any] = list(group["intermediates"])
    if len(places) < 2 or any(id(weight.variable) in again for weight in group["params"]):
        return False
    ways = [[way for way in place.next_functions if _weights_behind(way[0])] for place in places]
    reached = [one for own in ways for way in own for one in _weights_behind(way[0])]
    if any(reached.count(node) > 1 for own in ways for node, _ in own):
        return False
    entered: list[tuple[GradientEdge, Tensor]] = []
    for place, given, own in zip(places, group["grads"], ways, strict=True):
        roots = [(GradientEdge(place, n), one) for n, one in enumerate(given) if one is not None]
        made = zip(own, _gradients(roots, own), strict=True)
        entered += [(GradientEdge(*way), one) for way, one in made if one is not None]
    weights = [(weight, 0) for weight in group["params"]]
    for (weight, _), one in zip(weights, _gradients(entered, weights), strict=True):
        if one is not None:
            own = weight.variable
            own.grad = one if own.grad is None else own.grad + one
    return True


def _gradients(
    roots: list[tuple[GradientEdge, Tensor]], ways: list[tuple[Any, int]]
) -> tuple[Tensor | None, ...]:
    """What comes from `roots` along `ways` alone."""
    if not roots or not ways:
        return (None,) * len(ways)
    return torch.autograd.grad(
        [edge for edge, _ in roots],
        [GradientEdge(*way) for way in ways],
        grad_outputs=[one for _, one in roots],
        retain_graph=True,
        allow_unused=True,
    )


def _weights_behind(node: Any) -> set[Any]:
    """What is reached from a node, itself included; nothing where that is not weights alone, but
    what the stage received, too: tensors that are no parameters."""
    seen, left = {node}, [node]
    while left:
        one = left.pop()
        if one is None or not isinstance(getattr(one, "variable", None), nn.Parameter | None):
            return set()
        following = [way for way, _ in one.next_functions if way is not None and way not in seen]
        seen.update(following)
        left += following
    return seen
