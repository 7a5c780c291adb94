"""The types that flow along the edges of an `Arch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dim = int | str
"""An extent: a number, or the name of one that varies from call to call (`batch`, `text`)."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and kind of a tensor, with names for the dimensions that vary."""

    dims: tuple[Dim, ...]
    dtype: Literal["float", "int", "bool"] = "float"

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(d) for d in self.dims)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visual:
    """What an encoder or an adapter gives for one image (or one video): the type of vision.

    The same type carries every way to see: `features` for continuous tokens, `codes` for the
    discrete tokens of a VQ tokenizer, `pyramid` for feature maps at several scales.
    """

    form: Literal["features", "codes", "pyramid"] = "features"
    tokens: int
    """Tokens for each frame; the most there can be where the resolution varies."""
    min_tokens: int | None = None
    """The fewest tokens for each frame where the resolution varies; None where it does not."""
    width: int
    """Channels of each token; 0 for discrete codes."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the tokens that have a place in the image."""
    class_tokens: int = 0
    """Tokens at the front that have no place in the image (CLS)."""
    frames: int = 1
    """Frames of each image, at most: 1 for a still image."""
    trained_frames: int = 1
    """Frames that training shows of each image: the rows of a temporal embedding."""
    tiles: int = 1
    """Pictures that one image is cut into, overview included."""
    codebook: int = 0
    """Entries of the codebook for discrete codes."""
    scales: tuple[tuple[int, int], ...] = ()
    """Rows and columns of each map of a pyramid, finest first."""

    @property
    def total(self) -> int:
        """Tokens for one image over its frames and tiles."""
        return self.tokens * self.frames * self.tiles

    def tensor(self) -> TensorType:
        """The tensor that carries it: [images, tokens, width], or [images, tokens] for codes."""
        count: Dim = self.total if self.min_tokens is None else "visual"
        if self.form == "codes":
            return TensorType(("images", count), "int")
        return TensorType(("images", count, self.width))
