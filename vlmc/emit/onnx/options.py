"""What a user may choose about ONNX graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bits = Literal["int8", "int4"]

OPSETS = (20, 23)
"""20 is the first with Gelu; 23 the first with Attention, RMSNormalization and RotaryEmbedding."""

LARGEST_ERROR: dict[Bits, float] = {"int8": 0.05, "int4": 0.35}
"""The largest mean error of logits, relative to their spread, that a quantised graph may have unless
a user says otherwise. Rounding a random matrix to 8 bits in blocks of 32 costs about 0.01, to 4 bits
about 0.1 (a block's largest weight is about 2.2 standard deviations, a step that by 2 ** (bits - 1),
the error a step by sqrt(12)), and errors of layers add up."""


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
    """The largest mean error of quantised logits, relative to their standard deviation; None: 0.05
    with int8, 0.35 with int4."""

    @property
    def threshold(self) -> float:
        """The largest error that is let through."""
        if self.max_error is not None:
            return self.max_error
        return LARGEST_ERROR[self.quantize or "int8"]
