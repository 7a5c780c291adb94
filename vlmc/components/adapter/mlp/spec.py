"""The types of the projections: linear and MLP."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from vlmc.components import count
from vlmc.components.contract import AdapterSpec, Arguments, LanguageSpec, Parameters
from vlmc.components.fields import WHOLE, ActivationKind, Epsilon
from vlmc.ir import Visual


class MLPAdapter(AdapterSpec):
    """`layers` linear layers with an activation between them (LLaVA-1.5: two, GELU)."""

    kind: Literal["mlp"] = "mlp"
    layers: int = Field(default=2, ge=1, le=64, description="Linear layers.")
    activation: ActivationKind = Field(
        default="gelu", description="Nonlinearity between the layers."
    )
    norm: Literal["layernorm"] | None = Field(
        default=None, description="A LayerNorm after each linear layer (Yi-VL); none by default."
    )
    norm_eps: Epsilon = Field(default=1e-5, description="Epsilon of the LayerNorm.")
    bias: bool = Field(default=True, description="Whether the linear layers have a bias.")

    def output(self, source: Visual, language: LanguageSpec) -> Visual:
        return Visual(
            tokens=source.tokens,
            min_tokens=source.min_tokens,
            width=language.width,
            grid=source.grid,
            class_tokens=source.class_tokens,
            frames=source.frames,
            tiles=source.tiles,
        )

    def arguments(self, source: Visual, language: LanguageSpec) -> Arguments:
        return {
            "source_width": source.width,
            "width": language.width,
            "layers": self.layers,
            "activation": self.activation,
            "norm": self.norm is not None,
            "norm_eps": self.norm_eps,
            "bias": self.bias,
        }

    def parameters(self, source: Visual, language: LanguageSpec) -> Parameters:
        first = count.linear(source.width, language.width, bias=self.bias)
        rest = count.linear(language.width, language.width, bias=self.bias)
        norms = self.layers * count.norm(language.width, "layer") if self.norm else 0
        return {"layers": first + (self.layers - 1) * rest, "norms": norms}

    def mini(self) -> Self:
        return self.model_copy(update={"layers": min(self.layers, 3)})


class LinearAdapter(MLPAdapter):
    """A single projection (LLaVA, VisualBERT)."""

    kind: Literal["linear"] = "linear"  # pyright: ignore[reportIncompatibleVariableOverride]
    layers: Annotated[Literal[1], WHOLE] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=1, description="Linear layers: always one."
    )
