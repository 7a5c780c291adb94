"""What running a model has to know of its design: numbers and words, as they stand in JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from vlmc.diagnostics.faults import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a picture becomes pixel values, where no checkpoint says otherwise."""

    resize: Literal["shortest_edge", "stretch", "pad"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[float, ...]
    """Of each channel, on a scale of 0 to 1."""
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One design, of its laptop-size twin where `mini`."""

    name: str
    mini: bool
    serving: Literal["sequence", "cross_attention", "encoder_decoder", "single_pass"]
    """How vision reaches the language model: among the words of a decoder, as keys and values that
    it looks at, through an encoder, or in one pass that generates nothing."""
    head: Literal["lm", "classify", "masked_lm"]
    vocabulary: int
    """Entries of the language model's vocabulary, added tokens included."""
    context: int | None
    """Positions that the language model has; None where it has no bound."""
    text: int
    """Tokens of text in the token budget."""
    sequence: int
    """The longest sequence of the token budget: text and what its images take of it."""
    capacity: int
    """Slots of a key/value cache of fixed size: tokens that one row can have."""
    max_images: int
    """Images of one prompt in the token budget."""
    image_token: int | None
    """The token in whose places visual tokens stand (or that marks an image which is looked at from
    outside); None where visual tokens stand in front of the text or after it."""
    settable: bool
    """Whether a spec of this design could name an image token."""
    leading: bool
    """Whether images at the very front stand before the start token."""
    all_previous: bool
    """Whether a token looks at every image before it, and not at the last one alone."""
    positions: tuple[int, ...]
    """Positions of the sequence that an image of 1, 2, ... frames takes."""
    visual: tuple[int, ...]
    """Visual tokens that an image of 1, 2, ... frames becomes."""
    input_name: Literal["pixel_values", "visual_embeds"]
    """What the vision graph takes: pixels, or features of regions."""
    image_size: int | None
    """Height and width of the pixels; None where it takes features of regions."""
    preprocessing: Preprocessing | None
    regions: int
    """Regions of one image at most; 0 where it takes pixels."""
    region_width: int
    """Channels of the features of a region."""
    boxes: bool
    """Whether a file of features must hold a box for each region."""
    start_token: int | None
    """What the decoder of an encoder-decoder begins with; None where there is none."""
    cache_elements: int
    """Numbers that the key/value cache keeps for one token."""
    parts: tuple[str, ...] = ()
    """The parts that have weights: encoder, adapter, ..."""

    @property
    def frames(self) -> int:
        """Frames of one image at most: 1 for stills."""
        return len(self.positions)

    @property
    def generates(self) -> bool:
        """Whether it writes text, token by token."""
        return self.serving != "single_pass"

    def to_json(self) -> str:
        """As JSON, from which `design_from_json` makes it again."""
        return json.dumps(asdict(self), indent=2) + "\n"


def design_from_json(text: str) -> Design:
    """The design that `Design.to_json` wrote. Raises UsageError where the text is none."""
    try:
        found = cast("dict[str, Any]", json.loads(text))
        steps = found.pop("preprocessing")
        if steps is not None:
            steps = Preprocessing(**{k: _tuples(v) for k, v in steps.items()})
        return Design(preprocessing=steps, **{k: _tuples(v) for k, v in found.items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"not the description of a design: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
