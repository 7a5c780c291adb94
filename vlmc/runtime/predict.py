"""What a text encoder answers with: a class, or the words that were masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmc.builder.shards import read_json
from vlmc.diagnostics import EnvironmentFault, UsageError
from vlmc.runtime.inputs import Inputs
from vlmc.runtime.session import Session

SHOWN = 5
"""Answers listed for each question, likeliest first."""

MASKS = ("[MASK]", "<mask>")
"""What published tokenizers call a masked word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One possible answer. `of` says what it answers: `class`, `mask 1`, ..., or `pair`."""

    of: str
    label: str
    index: int
    probability: float

    def __str__(self) -> str:
        return f"{self.of:>8} {self.probability:7.2%}  {self.label}"


@torch.inference_mode()
def predict(session: Session, inputs: Inputs) -> tuple[str, tuple[Choice, ...]]:
    """The answer as text, and the likeliest answers with their probabilities.

    Raises UsageError where a prompt for masked words masks none.
    """
    kind = session.arch.node("head").kind
    ids = [int(one) for one in inputs.tensors["input_ids"][0]]
    mask = next((i for i in map(session.tokenizer.id, MASKS) if i is not None), None)
    masked = [place for place, one in enumerate(ids) if one == mask]
    if kind == "masked_lm" and not masked:
        raise UsageError(
            f"this design fills in masked words: write {MASKS[0]} where the prompt asks for one"
            if mask is not None
            else f"this design fills in {MASKS[0]}, but {session.tokenizer.name} has no such token"
        )
    network: Any = session.model
    output = network(**inputs.tensors)
    if not bool(torch.isfinite(output.logits).all()):
        raise EnvironmentFault(
            "the model's numbers overflowed: its logits are not finite; try --dtype fp32"
        )
    if kind == "masked_lm":
        return _words(session, output, ids, masked)
    labels = _labels(session)
    best = _best(output.logits[0], "class", lambda index: labels.get(index, f"class {index}"))
    return best[0].label, best


def _words(
    session: Session, output: Any, ids: list[int], masked: list[int]
) -> tuple[str, tuple[Choice, ...]]:
    """The prompt with its masks filled, and what could stand in each."""
    choices: list[Choice] = []
    for number, place in enumerate(masked, start=1):
        best = _best(
            output.logits[0, place],
            f"mask {number}",
            lambda index: session.tokenizer.decode([index]).strip() or f"token {index}",
        )
        choices.extend(best)
        ids[place] = best[0].index
    text = session.tokenizer.decode(ids)
    if output.seq_relationship_logits is not None:
        # Class 0 is a true pair (Devlin et al., 2019, section 3.1).
        together = float(output.seq_relationship_logits[0].float().softmax(-1)[0])
        choices.append(
            Choice(of="pair", label="image and text belong together", index=0, probability=together)
        )
    return text, tuple(choices)


def _best(logits: Tensor, of: str, label: Callable[[int], str]) -> tuple[Choice, ...]:
    probabilities = logits.float().softmax(dim=-1)
    top = map(int, probabilities.topk(min(SHOWN, probabilities.numel())).indices)
    return tuple(
        Choice(of=of, label=label(index), index=index, probability=float(probabilities[index]))
        for index in top
    )


def _labels(session: Session) -> dict[int, str]:
    """Names of the classes, where the checkpoint's config.json has real ones."""
    folder = session.source.checkpoint
    if folder is None or not (folder / "config.json").is_file():
        return {}
    named: Any = read_json(folder / "config.json").get("id2label")
    if not isinstance(named, dict):
        return {}
    pairs: list[tuple[str, Any]] = list(named.items())  # pyright: ignore
    return {
        int(index): str(label)
        for index, label in pairs
        if index.isdecimal() and str(label) != f"LABEL_{index}"
    }
