"""How the artifacts of a build are made: what a command says beside the design."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from vlmc.diagnostics import UsageError
from vlmc.diagnostics.nearest import listing

Dtype = Literal["fp32", "bf16", "fp16"]
Quantize = Literal["int8", "int4"]
Layout = Literal["transformers.js"]

_VALID: dict[str, tuple[object, ...]] = {
    "opset": (23, 20),
    "quantize": (None, "int8", "int4"),
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

    def given(self) -> tuple[str, ...]:
        """The options that differ from the usual ones, as they are typed."""
        words: list[str] = []
        for field in fields(self):
            value, name = getattr(self, field.name), field.name.replace("_", "-")
            if value is True:
                words.append(f"--{name}")
            elif value != field.default:
                words.append(f"--{name} {value}")
        return tuple(words)


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
