"""What a user may choose about ONNX graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bits = Literal["int8", "int4"]

QUANTISATION = "quantisation.json"
"""Among the graphs: what quantisation costs, as it was measured, and what it may cost."""

LARGEST_ERROR: dict[Bits, float] = {"int8": 0.1, "int4": 0.5}
"""The largest mean error of logits, relative to their spread, that a quantised graph may
have unless a user says otherwise. Rounding costs most where weights are drawn from a normal
distribution: 0.02 in 8 bits and 0.27 in 4 with 12 layers of 768. More than these bounds is no
rounding any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOptions:
    """How ONNX graphs are written."""

    opset: int = 23
    quantize: Bits | None = None
    """Writes the language model's graphs once more with the weights of their linear layers in this
    many bits."""
    quantize_vision: bool = False
    """Quantises the vision graph as well."""
    max_error: float | None = None
    """The largest mean error of quantised logits, relative to their standard deviation; None: 0.1
    with int8, 0.5 with int4."""

    @property
    def threshold(self) -> float:
        """The largest error that is let through."""
        if self.max_error is not None:
            return self.max_error
        return LARGEST_ERROR[self.quantize or "int8"]
