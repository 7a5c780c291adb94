"""The type of the classification head."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import Architecture, Arguments, HeadSpec, LanguageSpec, Parameters
from vlmc.components.fields import Rows
from vlmc.ir import Dim


class Classify(HeadSpec):
    """One answer of a fixed set (visual question answering as VisualBERT does it)."""

    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder",)
    kind: Literal["classify"] = "classify"
    classes: Rows = Field(default=3129, description="Answers to choose from (VQA 2.0: 3,129).")
    pool: Literal["last_word", "first"] = Field(
        default="last_word",
        description="Which hidden state decides. last_word: the one before the closing token of "
        "the text (VisualBERT, VQA); first: the first token through BERT's pooler.",
    )

    def outputs(self, language: LanguageSpec) -> int:
        return self.classes

    def output_dims(self, language: LanguageSpec) -> tuple[Dim, ...]:
        return ("batch", self.classes)

    def arguments(self, language: LanguageSpec) -> Arguments:
        return {"width": language.width, "classes": self.classes, "pool": self.pool}

    def parameters(self, language: LanguageSpec) -> Parameters:
        return {
            "pooler": count.linear(language.width, language.width) if self.pool == "first" else 0,
            "classifier": count.linear(language.width, self.classes),
        }

    def mini(self) -> Self:
        return self.model_copy(update={"classes": min(self.classes, 13)})
