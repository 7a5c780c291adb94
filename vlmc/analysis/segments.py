"""Which block a module belongs to."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

ROLES = ("encoder", "adapter", "language", "head")


class Segments:
    """Blocks of a model by the paths of its modules.

    A stack's blocks are `language.layers.*` with their numbers. What stands before, between and
    after the stacks of a part is its `.begin`, `.between` and `.end`; a part without stacks is one
    block under its own name, and what the fusion owns beside its stack is `fusion`.
    """

    def __init__(self, model: nn.Module, stacks: Collection[str]) -> None:
        self._stacks = tuple(stacks)
        self._known: dict[str, tuple[str, int]] = {}
        self._children = {
            role: [name for name, _ in model.get_submodule(role).named_children()] for role in ROLES
        }

    def __call__(self, path: str) -> tuple[str, int]:
        """Name of the block and its number in the stack (0 without one)."""
        if path not in self._known:
            self._known[path] = self._found(path)
        return self._known[path]

    def _found(self, path: str) -> tuple[str, int]:
        for stack in self._stacks:
            if path.startswith(f"{stack}."):
                return f"{stack}.*", int(path[len(stack) + 1 :].split(".", maxsplit=1)[0])
        role, _, rest = path.partition(".")
        if role not in ROLES:
            return "fusion", 0
        inside = [one.split(".")[1] for one in self._stacks if one.startswith(f"{role}.")]
        if not inside:
            return role, 0
        child, order = rest.split(".")[0], self._children[role]
        if child not in order:
            return f"{role}.begin", 0
        before = sum(order.index(stack) < order.index(child) for stack in inside)
        return (
            f"{role}.{('begin' if not before else 'end' if before == len(inside) else 'between')}",
            0,
        )
