"""The type of no adapter at all."""

from __future__ import annotations

from typing import Literal

from vlmc.components.contract import AdapterSpec, Arguments, LanguageSpec, Parameters
from vlmc.ir import Visual


class IdentityAdapter(AdapterSpec):
    """Hands the encoder's tokens on as they are."""

    kind: Literal["identity"] = "identity"

    def output(self, source: Visual, language: LanguageSpec) -> Visual:
        return source

    def arguments(self, source: Visual, language: LanguageSpec) -> Arguments:
        return {}

    def parameters(self, source: Visual, language: LanguageSpec) -> Parameters:
        return {}
