"""What the tests of emitted models share: calls that reach every path of a design, and the
library's answers to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlmc.ir import Arch

Call = dict[str, Any]


def calls(arch: Arch, *, batch: int = 2) -> list[Call]:
    """Calls with and without images, with labels, and over a cache where there is one."""
    torch.manual_seed(1)
    fusion, language = arch.node("fusion"), arch.node("language")
    vocabulary = int(language.arguments["vocabulary"])  # type: ignore[arg-type]
    words = torch.randint(0, max(1, vocabulary - 3), (batch, 6))
    port = arch.node("encoder").inputs[0]
    shape = [dim for dim in port.type.dims if isinstance(dim, int)]
    if fusion.kind == "gated_cross_attention":
        places, pixels = torch.full((batch, 2), token(arch)), torch.randn(batch, 2, *shape)
    elif fusion.kind == "placeholder":
        places = torch.full((batch, arch.tokens.in_sequence), token(arch))
        pixels = torch.randn(batch, *shape)
    else:
        places, pixels = words[:, :0], torch.randn(batch, *shape)
    ids = torch.cat((places, words), dim=1)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    if language.kind == "encoder":
        return [
            {"input_ids": ids, port.name: pixels, "cached": False},
            {"input_ids": ids, port.name: pixels, "attention_mask": mask, "cached": False},
            {"input_ids": ids, "cached": False},
        ]
    if language.kind == "encoder_decoder":
        first = words[:, :3]
        return [
            {"input_ids": ids, port.name: pixels, "labels": words, "cached": False},
            {"input_ids": ids, port.name: pixels, "attention_mask": mask, "cached": False},
            {"input_ids": ids, "decoder_input_ids": first, port.name: pixels, "cached": True},
            {"decoder_input_ids": first[:, :1], "cached": True},
        ]
    return [
        {"input_ids": ids, port.name: pixels, "labels": ids, "cached": False},
        {"input_ids": ids, port.name: pixels, "attention_mask": mask, "cached": False},
        {"input_ids": words, "cached": False},
        {"input_ids": ids, port.name: pixels, "cached": True},
        {"input_ids": words[:, :1], "cached": True},
    ]


def fits(arch: Arch) -> bool:
    """Whether the calls stay within the positions that a design has: they show an image to each
    row, whatever the budget says."""
    positions = arch.tokens.context
    return positions is None or arch.tokens.in_sequence + 6 + 2 <= positions


def token(arch: Arch) -> int:
    """The id of the image token."""
    value = arch.node("fusion").arguments["image_token"]
    assert isinstance(value, int)
    return value


def answers(model: nn.Module, given: list[Call]) -> list[dict[str, Tensor]]:
    """The outputs of each call; calls marked `cached` share a cache."""
    cache = None
    found: list[dict[str, Tensor]] = []
    for call in given:
        arguments = {name: value for name, value in call.items() if name != "cached"}
        if call["cached"]:
            cache = model.new_cache() if cache is None else cache  # type: ignore[operator]
            arguments["cache"] = cache
        with torch.no_grad():
            output = model(**arguments)
        found.append({"logits": output.logits})
        if output.loss is not None:
            found[-1]["loss"] = output.loss
    return found


def same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    """Whether two lists of outputs are equal bit for bit."""
    return len(first) == len(second) and all(
        one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
        for one, other in zip(first, second, strict=True)
    )
