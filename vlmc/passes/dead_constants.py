"""Removes calls whose results nobody reads, and the constants that then nobody reads.

A stage is captured with the whole model in view, so that each graph holds every weight: vision
graphs those of the language model, decoders those of the tower.
"""

from __future__ import annotations

from vlmc.capture.program import Draft, tensor
from vlmc.passes.effect import amount, counted


def dead_constants(draft: Draft) -> str:
    calls = draft.sweep()
    dead = [node for node in draft.targets if not node.users]
    parameters = sum(tensor(node).numel() for node in dead)
    for node in dead:
        draft.remove_constant(node)
    if not dead and not calls:
        return ""
    return (
        f"{counted(len(dead), 'constant')}, {amount(parameters)} parameters and "
        f"{counted(calls, 'call')} removed"
    )
