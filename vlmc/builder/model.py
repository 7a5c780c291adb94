"""From an `Arch` to an `nn.Module`, and the check of the body against its type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vlmc.components.catalog import kinds
from vlmc.ir import Arch, Node


class SignatureMismatch(AssertionError):
    """A module that is not what its spec says: a mistake of vlmc, never of its user."""


class WithoutValues(TorchFunctionMode):
    """Passes over torch's initialisers: on the meta device there is nothing to fill, and drawing
    random numbers there would load the whole of torch's compiler."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


def module_class(node: Node) -> type[nn.Module]:
    """The class that is the body of a node."""
    path, name = kinds(node.role)[node.kind].module.split(":")
    return getattr(import_module(f"vlmc.components.{path}"), name)


def instantiate(arch: Arch, *, device: torch.device | str = "meta") -> nn.Module:
    """The model of `arch` on `device`, checked against its types; frozen parts take no gradients.

    On the meta device (the default) nothing is allocated.
    """
    device = torch.device(device)
    on_meta = device.type == "meta"
    filling: AbstractContextManager[object] = WithoutValues() if on_meta else nullcontext()
    with filling, device:
        parts = {
            node.role: module_class(node)(**node.arguments)
            for node in arch.nodes
            if node.role != "fusion"
        }
        fusion = arch.node("fusion")
        model = module_class(fusion)(**parts, **fusion.arguments)
    for node in arch.nodes:
        for _, parameter in own_parameters(arch, model, node):
            parameter.requires_grad_(not node.frozen)
    check_signature(arch, model)
    return model


def own_parameters(arch: Arch, model: nn.Module, node: Node) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a node's own, named within it: the fusion's module is the whole model, but
    the parts that it joins are not its own."""
    if node.role != "fusion":
        yield from model.get_submodule(node.role).named_parameters()
        return
    joined = {other.role for other in arch.nodes if other is not node}
    for name, parameter in model.named_parameters():
        if name.split(".")[0] not in joined:
            yield name, parameter


def check_signature(arch: Arch, model: nn.Module) -> None:
    """Raises SignatureMismatch unless every part has exactly the predicted parameters, by child,
    and all of them are trained or all frozen as predicted."""
    for node in arch.nodes:
        built: dict[str, int] = {}
        for name, parameter in own_parameters(arch, model, node):
            child = name.split(".")[0]
            built[child] = built.get(child, 0) + parameter.numel()
            if parameter.requires_grad is node.frozen:
                raise SignatureMismatch(
                    f"{arch.name}: {node.role}.{name} is to be "
                    f"{'frozen' if node.frozen else 'trained'} and is not"
                )
        predicted = {child: count for child, count in node.parameters.items() if count}
        if built != predicted:
            raise SignatureMismatch(
                f"{arch.name}: {node.role} `{node.kind}` has the parameters {built}, "
                f"predicted {predicted}"
            )
