"""What quantisation may cost."""

from __future__ import annotations

from vlmc.emit.options import Options, Quantize

QUANTISATION = "quantisation.json"
"""Among the graphs: what quantisation costs, as it was measured, and what it may cost."""

LARGEST_ERROR: dict[Quantize, float] = {"int8": 0.1, "int4": 0.5}
"""The largest mean error of logits, relative to their spread, that a quantised graph may
have unless a user says otherwise. Rounding costs most where weights are drawn from a normal
distribution: 0.02 in 8 bits and 0.27 in 4 with 12 layers of 768. More than these bounds is no
rounding any more."""


def threshold(options: Options) -> float:
    """The largest error that is let through."""
    if options.max_error is not None:
        return options.max_error
    return LARGEST_ERROR[options.quantize or "int8"]
