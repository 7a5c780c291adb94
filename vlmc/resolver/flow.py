"""How vision flows through a draft: what each part gives to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmc.components.contract import (
    AdapterSpec,
    EncoderSpec,
    FusionSpec,
    HeadSpec,
    LanguageSpec,
)
from vlmc.ir import Visual
from vlmc.spec.document import ModelSpec, Target, TokenBudget, Training

USUAL = TokenBudget.model_construct()
"""The budget of a design that says none."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one prompt may hold, in numbers."""

    images: int
    text: int


@dataclass(frozen=True, slots=True)
class Flow:
    """The parts of a design that could be typed, and what vision becomes on its way.

    A part or a type is None where the document is wrong before it, so that every rule can be
    tried on what is there.
    """

    encoder: EncoderSpec | None
    adapter: AdapterSpec | None
    fusion: FusionSpec | None
    language: LanguageSpec | None
    head: HeadSpec | None
    budget: Budget
    target: Target | None
    training: Training | None
    seen: Visual | None
    """What the encoder gives."""
    visual: Visual | None
    """What the adapter makes of it."""


def flow(sections: dict[str, Any]) -> Flow:
    """The flow of a draft's sections."""
    encoder: EncoderSpec | None = sections.get("encoder")
    adapter: AdapterSpec | None = sections.get("adapter")
    language: LanguageSpec | None = sections.get("language")
    seen = visual = None
    if encoder is not None and not any(encoder.problems()):
        seen = encoder.visual()
        if adapter is not None and language is not None:
            visual = adapter.output(seen, language)
    return Flow(
        encoder=encoder,
        adapter=adapter,
        fusion=sections.get("fusion"),
        language=language,
        head=sections.get("head"),
        budget=settled(
            sections.get("token_budget", USUAL), language, sections.get("fusion"), visual
        ),
        target=sections.get("target"),
        training=sections.get("training"),
        seen=seen,
        visual=visual,
    )


def settled(
    budget: TokenBudget,
    language: LanguageSpec | None,
    fusion: FusionSpec | None,
    visual: Visual | None,
) -> Budget:
    """The budget with the most that the context holds in place of `auto`: of text beside the
    images, of images beside the text. Where nothing bounds it, what is usual."""
    images, text = budget.images, budget.text
    each, context = 0, None
    if language is not None and fusion is not None and visual is not None:
        each, context = fusion.positions(visual), language.context
    if images == "auto" and context is not None and each and text != "auto":
        images = max(0, context - text) // each
    if images == "auto":
        images = 1
    if text == "auto":
        text = 512 if context is None else max(1, context - images * each)
    return Budget(images=images, text=text)


def sections_of(spec: ModelSpec) -> dict[str, Any]:
    """The sections of a complete spec."""
    return {name: getattr(spec, name) for name in ModelSpec.model_fields}
