"""What a text encoder answers with: a class, or the words that were masked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.design import Design
from vlmc.runtime.finite import overflowed
from vlmc.runtime.json_object import json_object
from vlmc.runtime.sampling import Numbers, softmax
from vlmc.runtime.tokenizer import Tokenizer

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


def check_masks(design: Design, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The places of masked words among `ids`. Raises UsageError where a design that fills them in
    is given none."""
    mask = next((i for i in map(tokenizer.id, MASKS) if i is not None), None)
    masked = [place for place, one in enumerate(ids) if one == mask]
    if design.head == "masked_lm" and not masked:
        raise UsageError(
            f"this design fills in masked words: write {MASKS[0]} where the prompt asks for one"
            if mask is not None
            else f"this design fills in {MASKS[0]}, but {tokenizer.name} has no such token"
        )
    return masked


def judged(
    design: Design,
    tokenizer: Tokenizer,
    labels: Mapping[int, str],
    ids: list[int],
    outputs: Mapping[str, Numbers],
) -> tuple[str, tuple[Choice, ...]]:
    """The answer as text, and the likeliest answers with their probabilities, from the outputs of
    one row: logits [classes], or [tokens, vocabulary] and those of the pair [2].

    Raises EnvironmentFault where they are not finite.
    """
    logits = outputs["logits"]
    if not np.isfinite(logits).all():
        raise overflowed("its logits are")
    if design.head != "masked_lm":
        best = _likeliest(logits, "class", lambda index: labels.get(index, f"class {index}"))
        return best[0].label, best
    choices: list[Choice] = []
    for number, place in enumerate(check_masks(design, tokenizer, ids), start=1):
        best = _likeliest(
            logits[place],
            f"mask {number}",
            lambda index: tokenizer.decode([index]).strip() or f"token {index}",
        )
        choices.extend(best)
        ids[place] = best[0].index
    text = tokenizer.decode(ids)
    if "seq_relationship_logits" in outputs:
        # Class 0 is a true pair (Devlin et al., 2019, section 3.1).
        together = float(softmax(outputs["seq_relationship_logits"])[0])
        choices.append(
            Choice(of="pair", label="image and text belong together", index=0, probability=together)
        )
    return text, tuple(choices)


def class_names(folder: Path | None) -> dict[int, str]:
    """Names of the classes, where the config.json of a folder has real ones."""
    if folder is None or not (folder / "config.json").is_file():
        return {}
    named: Any = json_object(folder / "config.json").get("id2label")
    if not isinstance(named, dict):
        return {}
    pairs: list[tuple[str, Any]] = list(cast("dict[str, Any]", named).items())
    return {
        int(index): str(label)
        for index, label in pairs
        if index.isdecimal() and str(label) != f"LABEL_{index}"
    }


def _likeliest(logits: Numbers, of: str, label: Callable[[int], str]) -> tuple[Choice, ...]:
    probabilities = softmax(logits)
    top = [int(index) for index in np.argsort(-probabilities, kind="stable")[:SHOWN]]
    return tuple(
        Choice(of=of, label=label(index), index=index, probability=float(probabilities[index]))
        for index in top
    )
