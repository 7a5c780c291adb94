"""Which classes a design is built of: every constructor call, as it was made."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from vlmc.builder.model import instantiate, module_class
from vlmc.ir import Arch

COMPONENTS = "vlmc.components."


@dataclass(slots=True, eq=False)
class Instance:
    """One module of the model, and how it was made."""

    module: nn.Module
    arguments: dict[str, object]
    parent: Instance | None
    """Whose constructor made it."""
    file: str
    line: int
    """Where the call starts."""
    part: str = ""
    """The role of the part that it belongs to."""
    name: str = ""
    """What its owner calls it."""

    @property
    def kind(self) -> type[nn.Module]:
        """Its class."""
        return type(self.module)


@dataclass(slots=True)
class Recording:
    """The model of a design on the meta device, with each of our modules in the order made."""

    model: nn.Module
    instances: list[Instance] = field(default_factory=list[Instance])


def record(arch: Arch) -> Recording:
    """Builds `arch` on the meta device and notes how."""
    instances: list[Instance] = []
    for node in arch.nodes:
        module_class(node)
    with _noting(_kinds(), instances):
        model = instantiate(arch)
    by_module = {id(instance.module): instance for instance in instances}
    roles = {node.role for node in arch.nodes if node.role != "fusion"}
    paths = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for path, module in paths:
        instance = by_module.get(id(module))
        if instance is not None:
            names = path.split(".")
            instance.part = names[0] if names[0] in roles else "fusion"
            instance.name = next((n for n in reversed(names) if not n.isdigit()), "")
    return Recording(model, instances)


@contextmanager
def _noting(kinds: list[type[nn.Module]], instances: list[Instance]) -> Generator[None]:
    """While active, what the classes construct is appended to `instances`."""
    under_construction: list[Instance] = []

    def noting(kind: type[nn.Module]) -> Callable[..., None]:
        construct = kind.__init__
        parameters = inspect.signature(construct).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

        def noted(self: nn.Module, **arguments: Any) -> None:
            caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
            parent = under_construction[-1] if under_construction else None
            place = (caller.f_code.co_filename, caller.f_lineno)
            instance = Instance(self, {**defaults, **arguments}, parent, *place)
            instances.append(instance)
            under_construction.append(instance)
            construct(self, **arguments)
            under_construction.pop()

        return noted

    own = {kind: vars(kind).get("__init__") for kind in kinds}
    try:
        for kind in kinds:
            kind.__init__ = noting(kind)
        yield
    finally:
        for kind, construct in own.items():
            if construct is None:
                delattr(kind, "__init__")
            else:
                kind.__init__ = construct


def _kinds(base: type[nn.Module] = nn.Module) -> list[type[nn.Module]]:
    """The module classes of our components that are imported by now."""
    found = [base] if base.__module__.startswith(COMPONENTS) else []
    return found + [kind for sub in base.__subclasses__() for kind in _kinds(sub)]
