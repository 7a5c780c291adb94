"""How a model of ours is held against its reference in transformers.

A random initialisation hides mistakes (zero gates, images that hardly matter), so every parameter
is drawn anew; the tolerance is what the reference itself differs by between two of its own
attention kernels; and each listed mistake is made on purpose to see that the tolerance catches it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmc.builder.checkpoint import load_checkpoint
from vlmc.builder.model import instantiate
from vlmc.builder.naming import Names, fill, names_for
from vlmc.ir import Arch
from vlmc.resolver.resolve import resolve
from vlmc.spec.loader import draft
from vlmc.spec.reader import parse

FLOOR = 1e-5
GRADIENT_TOLERANCE = 1e-4
STEPS = 32

Inputs = Mapping[str, Any]


def randomise(model: nn.Module, *, seed: int = 0) -> None:
    """Draws every parameter of a reference anew: gates open, norms uneven, no bias zero.

    Names, not their order, decide the draw, and activations stay of order one.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.numel() == 1:
                parameter.copy_(0.5 + 0.5 * draw.abs())
            elif parameter.ndim == 1:
                level = 1.0 if parameter.abs().mean() > 0.5 else 0.0  # a norm's scale or a bias
                parameter.copy_(level + 0.2 * draw)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(draw * fan_in**-0.5)
    model.eval()


def arch_of(document: Mapping[str, Any]) -> Arch:
    """The Arch of a spec given as Python values."""
    text = json.dumps({"schema": 1, "name": "parity", **document})
    found = draft(parse(text, "parity.yaml"), "parity.yaml", default_name="parity")
    assert found.complete, [problem.message for problem in found.problems]
    return resolve(found.spec())


def saved(reference: Any, folder: Path) -> Path:
    """The folder with the reference's checkpoint, written by the reference itself."""
    reference.save_pretrained(folder)
    return folder


def loaded(document: Mapping[str, Any], folder: Path) -> nn.Module:
    """Our model of `document` with the checkpoint's weights."""
    arch = arch_of(document)
    return load_checkpoint(instantiate(arch), arch, folder).eval()


def mutant(ours: nn.Module, document: Mapping[str, Any]) -> nn.Module:
    """A model of another design with the weights of `ours`: what loading without a check of
    config.json would give. Weights that the other design lacks are dropped."""
    model = instantiate(arch_of(document))
    model.load_state_dict(
        {name: value for name, value in ours.state_dict().items() if name in model.state_dict()},
        assign=True,
    )
    return model.eval()


def changed(document: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `document` with `value` at a dotted path."""
    copy = json.loads(json.dumps(document))
    at = copy
    *parents, last = path.split(".")
    for key in parents:
        at = at.setdefault(key, {})
    at[last] = value
    return copy


def logits_of(model: Any, inputs: Inputs) -> Tensor:
    """The logits, without gradients."""
    with torch.no_grad():
        return model(**inputs).logits


def reference_with_noise(
    reference: Any, inputs: Inputs, rows: Tensor | None
) -> tuple[Tensor, float]:
    """The reference's logits (sdpa) and how far its eager attention is from them."""
    reference.set_attn_implementation("eager")
    eager = logits_of(reference, inputs)
    reference.set_attn_implementation("sdpa")
    sdpa = logits_of(reference, inputs)
    return sdpa, distance(sdpa, eager, rows)


def distance(one: Tensor, other: Tensor, rows: Tensor | None = None) -> float:
    """The largest difference, over the rows [batch, tokens] that are not padding."""
    assert one.shape == other.shape, f"{tuple(one.shape)} against {tuple(other.shape)}"
    difference = (one - other).abs()
    if rows is not None:
        difference = difference[rows.bool()]
    assert difference.isfinite().all()
    return float(difference.max())


def error_and_tolerance(
    reference: Any,
    ours: nn.Module,
    inputs: Inputs,
    *,
    our_inputs: Inputs | None = None,
    rows: Tensor | None = None,
) -> tuple[float, float]:
    """Our largest error, and what is allowed on this input."""
    expected, noise = reference_with_noise(reference, inputs, rows)
    got = logits_of(ours, inputs if our_inputs is None else our_inputs)
    return distance(got, expected, rows), max(FLOOR, 2 * noise)


def assert_parity(reference: Any, ours: nn.Module, inputs: Inputs, **more: Any) -> None:
    """Our logits are the reference's; `more` as for `error_and_tolerance`."""
    error, tolerance = error_and_tolerance(reference, ours, inputs, **more)
    assert error <= tolerance, f"error {error:.2e} above {tolerance:.2e}"


def assert_caught(reference: Any, broken: nn.Module, inputs: Inputs, **more: Any) -> None:
    """A mistake made on purpose shows."""
    error, tolerance = error_and_tolerance(reference, broken, inputs, **more)
    assert error > tolerance, f"the mistake stays hidden: error {error:.2e} under {tolerance:.2e}"


def assert_image_matters(ours: nn.Module, inputs: Inputs, name: str = "pixel_values") -> None:
    """Another image changes the logits."""
    other = {**inputs, name: torch.randn_like(inputs[name])}
    assert distance(logits_of(ours, inputs), logits_of(ours, other)) > 1e-2


def assert_gradients(
    reference: Any,
    ours: nn.Module,
    folder: Path,
    inputs: Inputs,
    labels: Tensor,
    *,
    our_inputs: Inputs | None = None,
) -> set[str]:
    """The loss and the gradient of each trainable parameter are the reference's, relative to the
    largest entry of the tensor. Returns the names of the parameters that were compared."""
    names = names_for(json.loads((folder / "config.json").read_text()))
    theirs = reference(**inputs, labels=labels).loss
    mine = ours(**(inputs if our_inputs is None else our_inputs), labels=labels).loss
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    reference.zero_grad()
    ours.zero_grad()
    theirs.backward()
    mine.backward()
    expected = _gradients(reference, ours, names)
    trainable = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    # A gradient that is zero in exact arithmetic (a key's bias) is noise on both sides: what is
    # asked of a tensor ends at four roundings of fp32 (1.2e-7) beside the largest gradient.
    floor = 5e-3 * max(float(gradient.abs().max()) for gradient in expected.values())
    compared: set[str] = set()
    for name, parameter in trainable.items():
        if name not in expected and parameter.grad is None:
            continue
        assert name in expected, f"{name} has a gradient in ours only"
        assert parameter.grad is not None, f"{name} has no gradient"
        scale = max(float(expected[name].abs().max()), floor)
        error = float((parameter.grad - expected[name]).abs().max()) / scale
        assert error <= GRADIENT_TOLERANCE, f"{name}: relative gradient error {error:.2e}"
        compared.add(name)
    return compared


def _gradients(reference: nn.Module, ours: nn.Module, names: Names) -> dict[str, Tensor]:
    """The reference's gradients by our names, fused ones split and reshaped as weights are."""
    result: dict[str, Tensor] = {}
    for name, parameter in reference.named_parameters():
        found = names.rule(names.canonical(name))
        if found is None or parameter.grad is None:
            continue
        rule, words = found
        targets = [fill(target, words) for target in rule.targets]
        shapes = [ours.get_parameter(t).shape for t in targets if _has(ours, t)]
        if len(shapes) != len(targets) or not targets:
            continue
        pieces = (
            parameter.grad.split([s[0] for s in shapes]) if len(targets) > 1 else [parameter.grad]
        )
        for target, piece, shape in zip(targets, pieces, shapes, strict=True):
            result[target] = piece.reshape(shape)
    return result


def _has(model: nn.Module, name: str) -> bool:
    return any(name == own for own, _ in model.named_parameters())


def greedy_reference(reference: Any, inputs: Inputs, *, steps: int = STEPS) -> Tensor:
    """Greedy tokens [batch, steps] of a decoder, the whole sequence at each step: no cache."""
    state = dict(inputs)
    new: list[Tensor] = []
    for _ in range(steps):
        token = logits_of(reference, state)[:, -1].argmax(-1, keepdim=True)
        new.append(token)
        state["input_ids"] = torch.cat((state["input_ids"], token), dim=1)
        if state.get("attention_mask") is not None:
            ones = torch.ones_like(token)
            state["attention_mask"] = torch.cat((state["attention_mask"], ones), dim=1)
    return torch.cat(new, dim=1)


def greedy_ours(
    ours: Any,
    inputs: Inputs,
    *,
    steps: int = STEPS,
    images: tuple[str, ...] = ("pixel_values",),
    next_inputs: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: state,
) -> Tensor:
    """Greedy tokens [batch, steps] with the cache: the prompt once, then one token a step.

    Inputs named in `images` are given with the prompt only; `next_inputs` may adjust the others.
    """
    cache = ours.new_cache()
    state = dict(inputs)
    new: list[Tensor] = []
    for _ in range(steps):
        token = logits_of(ours, {**state, "cache": cache})[:, -1].argmax(-1, keepdim=True)
        new.append(token)
        state = {k: v for k, v in state.items() if k not in images}
        state["input_ids"] = token
        if state.get("attention_mask") is not None:
            ones = torch.ones_like(token)
            state["attention_mask"] = torch.cat((state["attention_mask"], ones), dim=1)
        state = next_inputs(state)
    return torch.cat(new, dim=1)
