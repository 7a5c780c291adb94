"""What one call of an operator costs: FLOPs by torch's own formulas, and bytes moved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import flop_counter
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
_FORMULAS: Any = flop_counter


def _flash(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return _FORMULAS.sdpa_flop_count(query, key, value)


def _flash_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return _FORMULAS.sdpa_backward_flop_count(gradient, query, key, value)


def _shaped(formula: Callable[..., int]) -> Callable[..., int]:
    """Of tensors, as formulas in torch's registry are: they take shapes once unwrapped."""

    def counted(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        shapes = [one.shape if isinstance(one, Tensor) else one for one in args]
        return formula(*shapes, **kwargs)

    return counted


FUSED: Mapping[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _shaped(_flash),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _shaped(_flash_backward),
}
"""Fused attention on a CPU, which torch has no formulas for: as on a GPU, two products forward and
five backward. In the form of FlopCounterMode's `custom_mapping`."""

MATMUL = frozenset(
    {
        aten.mm,
        aten.addmm,
        aten.bmm,
        aten.baddbmm,
        aten.convolution,
        aten.convolution_backward,
        *FUSED,
    }
)
"""What runs on matrix units."""

_SPARSE_READS = frozenset({aten.embedding, aten.gather, aten.index, aten.index_select})
"""Operators that read of their first tensor no more than they return."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a call."""

    flops: int
    bytes: int
    """Read plus written: each tensor once, an expanded one as it lies."""
    matmul: bool
    halves: tuple[int, int] | None = None
    """FLOPs for the input and for the weights, of a convolution's backward pass."""


@dataclass(frozen=True, slots=True)
class _Made:
    """What a call gave: tensors by shape, strides and format."""

    out: Any
    cost: Cost


class Memory:
    """Runs operators on the meta device, each kind of call once: what it gives depends on shapes
    alone, and torch finds shapes slowly."""

    def __init__(self) -> None:
        self._views: dict[Any, bool] = {}
        self._known: dict[Any, _Made] = {}

    def is_view(self, func: Any) -> bool:
        """Whether an operator only looks at its input in another way."""
        if func not in self._views:
            returns = func._schema.returns
            self._views[func] = bool(returns) and all(
                one.alias_info is not None and not one.alias_info.is_write for one in returns
            )
        return self._views[func]

    def run(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, Cost | None]:
        """What a call gives, and its cost; None where it turns out to be a view."""
        key = (func, _described(args), _described(tuple(kwargs.items())))
        known = self._known.get(key)
        if known is not None:
            return _again(known.out), known.cost
        out = func(*args, **kwargs)
        given, made = list(tensors((args, kwargs))), list(tensors(out))
        storages = {storage_key(one) for one in given}
        shared = any(storage_key(one) in storages for one in made)
        if shared and not func._schema.is_mutable:
            return out, None
        cost = _cost(func, args, kwargs, out, given, made)
        if not shared:
            self._known[key] = _Made(_form(out), cost)
        return out, cost


def storage_key(tensor: Tensor) -> int:
    """The same for all views of a storage, while it lives."""
    storage: Any = tensor.untyped_storage()
    return storage._cdata


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in an operator's arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in cast("Iterable[Any]", value):
            yield from tensors(one)
    elif isinstance(value, dict):
        for one in cast("Iterable[Any]", value.values()):
            yield from tensors(one)


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, (tuple, list)):
        return tuple([_described(one) for one in cast("Iterable[Any]", value)])
    # 1, 1.0 and True are equal, but operators tell them apart.
    return type(value), value


def _form(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.shape, out.stride(), out.dtype
    if isinstance(out, (tuple, list)):
        return [_form(one) for one in cast("Iterable[Any]", out)]
    return out


def _again(form: Any) -> Any:
    if isinstance(form, tuple):
        shape, stride, dtype = cast("Any", form)
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    if isinstance(form, list):
        return tuple([_again(one) for one in cast("Iterable[Any]", form)])
    return form


def _cost(
    func: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    out: Any,
    given: Sequence[Tensor],
    made: Sequence[Tensor],
) -> Cost:
    packet = func.overloadpacket
    formula = FUSED.get(packet) or flop_registry.get(packet)
    flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
    halves = None
    if packet is aten.convolution_backward and formula is not None:
        *rest, mask = args
        of_input = formula(*rest, [mask[0], False, False], **kwargs, out_val=out)
        halves = int(of_input), flops - int(of_input)
    return Cost(flops, _moved(packet, given, made), packet in MATMUL, halves)


def _moved(packet: Any, given: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    written = sum(_lying(one) for one in made)
    if packet in _SPARSE_READS:
        return written + written + sum(_lying(one) for one in given[1:])
    return written + sum(_lying(one) for one in given)


def _lying(tensor: Tensor) -> int:
    count = tensor.element_size()
    for extent, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride:
            count *= extent
    return count


class FusedAttention(TorchFunctionMode):
    """On the meta device attention would be spelt out; within this mode it is the fused operator
    wherever a CPU or a GPU has one: for a mask that takes no gradient (aten's sdp_utils_cpp.h)."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args
        mask, causal = kwargs.get("attn_mask"), kwargs.get("is_causal", False)
        learned = mask is not None and mask.requires_grad and torch.is_grad_enabled()
        if learned or value.shape[-1] != query.shape[-1]:
            return func(*args, **kwargs)
        if mask is not None and mask.dtype is torch.bool:
            infinity = torch.full((), -torch.inf, dtype=query.dtype, device=query.device)
            mask = torch.where(mask, torch.zeros_like(infinity), infinity)
        return aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=kwargs.get("scale")
        )[0]
