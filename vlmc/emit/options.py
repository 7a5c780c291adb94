"""How the artifacts of a build are made: what a command says beside the design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from vlmc.diagnostics import UsageError
from vlmc.diagnostics.nearest import listing

Dtype = Literal["fp32", "bf16", "fp16"]
Quantize = Literal["int8", "int4"]
Layout = Literal["transformers.js"]

OPSETS = (23, 20)
"""20 is the first with Gelu; 23 the first with Attention, RMSNormalization and RotaryEmbedding."""

_VALID: dict[str, tuple[object, ...]] = {
    "opset": OPSETS,
    "quantize": (None, "int8", "int4"),
    "quantize_vision": (False, True),
    "layout": (None, "transformers.js"),
    "dtype": (None, "fp32", "bf16", "fp16"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of `vlmc build` that say how artifacts are made, by the names that they have there.

    Raises UsageError for a value that an option does not take.
    """

    opset: int = 23
    quantize: Quantize | None = None
    quantize_vision: bool = False
    max_error: float | None = None
    """The mean error of quantised logits, relative to their standard deviation, above which a
    quantised artifact is refused; None is the usual bound of its format."""
    layout: Layout | None = None
    dtype: Dtype | None = None
    """Number format in which the weights are written; None keeps a checkpoint's, and is fp32 for
    seeded ones."""

    def __post_init__(self) -> None:
        for name, valid in _VALID.items():
            value = getattr(self, name)
            if value not in valid:
                words = [str(word) for word in valid if word is not None]
                raise UsageError(f"--{name} {value}: {listing(str(value), words)} is expected")
        if self.max_error is not None and not 0 < self.max_error < float("inf"):
            raise UsageError(f"--max-error {self.max_error:g}: a number above 0 is expected")

    @property
    def unusual(self) -> dict[str, Any]:
        """The options that differ from the usual ones, by their names."""
        pairs = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in pairs if value != field.default}

    def given(self) -> tuple[str, ...]:
        """The options that differ from the usual ones, as they are typed."""
        return tuple(
            f"--{name.replace('_', '-')}"
            if value is True
            else f"--{name.replace('_', '-')} {value}"
            for name, value in self.unusual.items()
        )


Said = Options | Mapping[str, Any] | None
"""What a call says of options: all of them, or by their names those that are to differ from what a
build folder was made with; None is nothing."""


def settle(said: Said, recorded: Options, artifacts: Sequence[str], *, valued: bool) -> Options:
    """The options of a build: what a call says, else what is `recorded` of the build that is made
    again, as far as it is about `artifacts`. Raises UsageError for what a call says as `check`
    does."""
    if isinstance(said, Options):
        check(said, artifacts, valued=valued)
        return said
    chosen = replace(_about(recorded, artifacts), **(said or {}))
    if said:
        # The number format that is recorded says how weights were written, not that they are now.
        check(chosen, artifacts, valued=valued or "dtype" not in said)
    return chosen


def _about(recorded: Options, artifacts: Sequence[str]) -> Options:
    """Recorded options without those of artifacts that are no longer made."""
    return recorded if "onnx" in artifacts else Options(dtype=recorded.dtype)


def check(options: Options, artifacts: Sequence[str], *, valued: bool) -> None:
    """Raises UsageError where options contradict each other, the artifacts that they are for, or a
    build that writes no weights (`valued` is false)."""
    of_onnx = {
        "--opset": options.opset != 23,
        "--quantize": options.quantize is not None,
        "--layout": options.layout is not None,
    }
    for option, asked in of_onnx.items():
        if asked and "onnx" not in artifacts:
            raise UsageError(
                f"{option} is about the artifact onnx, which this build does not make; it makes "
                f"{', '.join(artifacts)}: add it with --artifacts"
            )
    if options.quantize is None:
        for option, asked in (
            ("--quantize-vision", options.quantize_vision),
            ("--max-error", options.max_error is not None),
        ):
            if asked:
                raise UsageError(f"{option} means nothing without --quantize int8 or int4")
    if options.dtype is not None and not valued:
        raise UsageError(
            "--dtype says in which number format weights are written, and this build writes none; "
            "give --checkpoint DIR or --seed N too"
        )
