"""The type of fusion in one bidirectional stream."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vlmc.components.contract import (
    Architecture,
    Arguments,
    FusionSpec,
    LanguageSpec,
    Parameters,
)
from vlmc.ir import Visual


class SingleStream(FusionSpec):
    """Visual tokens stand after the words in the sequence of a text encoder (VisualBERT)."""

    points: ClassVar[tuple[str, ...]] = ("early",)
    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder",)
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "visual_embeds")
    kind: Literal["single_stream"] = "single_stream"
    token_types: int = Field(
        default=2,
        ge=2,
        le=2**20,
        description="Types of a visual token; a region has type 1 unless the input says.",
    )

    def in_sequence(self, visual: Visual) -> int:
        return visual.total

    def positions(self, visual: Visual) -> int:
        """None: the text's positions are the text's alone, visual tokens share one of their own."""
        return 0

    def arguments(self, visual: Visual, language: LanguageSpec) -> Arguments:
        return {
            "width": language.width,
            "token_types": self.token_types,
            "positions": language.context,
        }

    def parameters(self, visual: Visual, language: LanguageSpec) -> Parameters:
        return {
            "visual_type_embedding": self.token_types * language.width,
            "visual_position_embedding": (language.context or 0) * language.width,
        }
