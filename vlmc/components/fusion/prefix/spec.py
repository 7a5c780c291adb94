"""The types of fusion by visual tokens before the text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal, Self

from pydantic import Field

from vlmc.components.contract import (
    Architecture,
    Arguments,
    FusionSpec,
    LanguageSpec,
    in_vocabulary,
)
from vlmc.components.fields import Count
from vlmc.diagnostics import Problem
from vlmc.ir import Visual


class Prefix(FusionSpec):
    """Visual tokens stand before the text, or in the places of a placeholder where the data has
    them."""

    points: ClassVar[tuple[str, ...]] = ("late",)
    architectures: ClassVar[tuple[Architecture, ...]] = ("decoder", "encoder_decoder")
    kind: Literal["prefix"] = "prefix"
    token: Count | None = Field(
        default=None,
        description="Id of a placeholder that the data may hold; without one, visual tokens are "
        "always put in front of the text.",
    )

    def in_sequence(self, visual: Visual) -> int:
        return visual.total

    def problems_with(self, visual: Visual, language: LanguageSpec) -> Iterator[Problem]:
        if self.token is not None:
            entries = language.total_vocabulary
            yield from in_vocabulary("token", self.token, entries, help_=entries - 1)

    def arguments(self, visual: Visual, language: LanguageSpec) -> Arguments:
        return {
            "image_token": self.token,
            "encoder_decoder": language.architecture == "encoder_decoder",
        }

    def mini_for(self, language: LanguageSpec) -> Self:
        if self.token is None:
            return self
        return self.model_copy(update={"token": language.total_vocabulary - 1})


class QueryPrefix(Prefix):
    """What learned queries have read of an image stands before the text (BLIP-2)."""

    points: ClassVar[tuple[str, ...]] = ("mid",)
    kind: Literal["query_prefix"] = "query_prefix"  # pyright: ignore[reportIncompatibleVariableOverride]
