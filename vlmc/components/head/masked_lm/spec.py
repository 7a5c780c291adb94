"""The type of the pre-training head."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import Architecture, Arguments, HeadSpec, LanguageSpec, Parameters
from vlmc.components.fields import ActivationKind, Epsilon


class MaskedLM(HeadSpec):
    """What stood in the place of masked words, and whether image and text belong together (BERT,
    VisualBERT's pre-training); tied to the embedding where the language model says so."""

    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder",)
    kind: Literal["masked_lm"] = "masked_lm"
    activation: ActivationKind = Field(
        default="gelu", description="Nonlinearity of the transform before the projection."
    )
    norm_eps: Epsilon = Field(default=1e-12, description="Epsilon of the transform's LayerNorm.")
    pairs: bool = Field(
        default=True, description="Whether the head also judges if image and text belong together."
    )

    def outputs(self, language: LanguageSpec) -> int:
        return language.vocabulary

    def arguments(self, language: LanguageSpec) -> Arguments:
        return {
            "width": language.width,
            "vocabulary": language.vocabulary,
            "tied": language.tied_head,
            "activation": self.activation,
            "norm_eps": self.norm_eps,
            "pairs": self.pairs,
        }

    def parameters(self, language: LanguageSpec) -> Parameters:
        width, vocabulary = language.width, language.vocabulary
        return {
            "transform": count.linear(width, width),
            "norm": count.norm(width, "layer"),
            "projection": 0 if language.tied_head else width * vocabulary,
            "bias": vocabulary,
            "pooler": count.linear(width, width) if self.pairs else 0,
            "pair": count.linear(width, 2) if self.pairs else 0,
        }
