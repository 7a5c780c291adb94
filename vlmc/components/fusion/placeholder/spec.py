"""The type of fusion by placeholder tokens."""

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
from vlmc.components.fields import Count, Positive
from vlmc.diagnostics import Problem
from vlmc.ir import Visual


class Placeholder(FusionSpec):
    """Visual tokens take the places of placeholder tokens in the text (LLaVA)."""

    points: ClassVar[tuple[str, ...]] = ("late",)
    architectures: ClassVar[tuple[Architecture, ...]] = ("decoder",)
    kind: Literal["placeholder"] = "placeholder"
    token: Count | None = Field(
        default=None,
        description="Id of the placeholder in the vocabulary; its last entry by default.",
    )
    placeholders: Positive | None = Field(
        default=None,
        description="Placeholders that the data puts for each image. Inferred; state it to have "
        "it checked against the visual tokens.",
    )

    def in_sequence(self, visual: Visual) -> int:
        return visual.total

    def image_token(self, language: LanguageSpec) -> int:
        """The id of the placeholder, resolved."""
        return language.total_vocabulary - 1 if self.token is None else self.token

    def problems_with(self, visual: Visual, language: LanguageSpec) -> Iterator[Problem]:
        if self.placeholders is not None and self.placeholders != visual.total:
            yield Problem(
                code="VLMC110",
                path=("placeholders",),
                message=f"each image has {self.placeholders} placeholders but becomes "
                f"{visual.total} visual tokens",
                expected=f"{visual.total} = {visual.tokens} tokens x {visual.frames} frames x "
                f"{visual.tiles} tiles",
                got=str(self.placeholders),
                help=f"placeholders: {visual.total}",
            )
        if self.token is not None:
            entries = language.total_vocabulary
            yield from in_vocabulary("token", self.token, entries, help_=entries - 1)

    def arguments(self, visual: Visual, language: LanguageSpec) -> Arguments:
        return {"image_token": self.image_token(language)}

    def mini_for(self, language: LanguageSpec) -> Self:
        return self.model_copy(
            update={"token": language.total_vocabulary - 1, "placeholders": None}
        )
