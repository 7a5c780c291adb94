"""Removes the vision layers past the chosen feature layer.

What is taken from a tower is often not its last state (Liu et al., 2023, LLaVA, take the last but
one): the layers after it compute nothing that is read.
"""

from __future__ import annotations

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import amount, counted

LAYERS = "model.encoder.layers."


def dead_layers(draft: Draft) -> str:
    draft.sweep()
    layers = {
        node: int(target.removeprefix(LAYERS).split(".", 1)[0])
        for node, target in draft.targets.items()
        if target.startswith(LAYERS)
    }
    alive = {number for node, number in layers.items() if node.users}
    if not alive:  # no graph of the tower's
        return ""
    dead = [node for node, number in layers.items() if number > max(alive)]
    if not dead:
        return ""
    parameters = sum(tensor(node).numel() for node in dead)
    first, count = max(alive) + 2, max(layers.values()) + 1
    for node in dead:
        draft.remove_constant(node)
    which = f"layer {count}" if first == count else f"layers {first} to {count}"
    return (
        f"vision {which} of {count}, past the chosen features, removed: "
        f"{counted(len(dead), 'constant')}, {amount(parameters)} parameters"
    )
