"""The type of the language-modelling head."""

from __future__ import annotations

from typing import ClassVar, Literal

from vlmc.components.contract import Architecture, Arguments, HeadSpec, LanguageSpec, Parameters


class LMHead(HeadSpec):
    """Next-token logits over the vocabulary, tied to the embedding where the language model says
    so (`tied_head`)."""

    architectures: ClassVar[tuple[Architecture, ...]] = ("decoder", "encoder_decoder")
    kind: Literal["lm"] = "lm"

    def outputs(self, language: LanguageSpec) -> int:
        return language.total_vocabulary

    def arguments(self, language: LanguageSpec) -> Arguments:
        return {
            "width": language.width,
            "vocabulary": language.vocabulary,
            "added_vocabulary": language.total_vocabulary - language.vocabulary,
            "tied": language.tied_head,
            "scale": language.head_scale,
        }

    def parameters(self, language: LanguageSpec) -> Parameters:
        added = language.total_vocabulary - language.vocabulary
        return {
            "projection": 0 if language.tied_head else language.vocabulary * language.width,
            "added_projection": 0 if language.tied_head else added * language.width,
        }
