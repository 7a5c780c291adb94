"""What a training run must know of a design beside its model.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part: its kind, the arguments that it was made with, and how many parameters it has."""

    kind: str
    arguments: dict[str, Any]
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a design by role."""

    name: str
    spec: str
    """The fingerprint of the spec that it was built from, as a plan for it bears."""
    parts: dict[str, Part]
    image: tuple[int, ...]
    """Shape of one image (or of its region features); of a video of the most frames, where the
    encoder sees videos."""
    places: int
    """Positions of the text that one image takes: as many tokens stand for it."""
    context: int | None
    """Positions that the language model has."""

    def argument(self, role: str, name: str) -> Any:
        """An argument of a part; None where it takes none of this name."""
        return self.parts[role].arguments.get(name)

    @property
    def still(self) -> tuple[int, ...]:
        """Shape of an image that is no video, as plans count them."""
        return self.image[-3:]

    @property
    def fusion(self) -> str:
        """How vision reaches the language model, by what the model does with it."""
        kind = self.parts["fusion"].kind
        return {"query_prefix": "prefix"}.get(kind, kind)

    @property
    def vocabulary(self) -> int:
        """Words that the language model knows, added ones among them."""
        added = self.argument("language", "added_vocabulary") or 0
        return int(self.argument("language", "vocabulary")) + int(added)

    @property
    def taken(self) -> int:
        """Positions that one image takes beside the text."""
        return self.places if self.fusion in ("prefix", "placeholder") else 0

    @property
    def image_words(self) -> int:
        """Tokens of the text that stand for one image."""
        return 1 if self.fusion == "gated_cross_attention" else 0

    @property
    def target(self) -> bool:
        """Whether the words to learn are read by a decoder of their own."""
        return self.parts["language"].kind == "encoder_decoder"


def role_of(parameter: str) -> str:
    """The part that a parameter belongs to, by its name in model.py."""
    first = parameter.split(".", maxsplit=1)[0]
    return first if first in ("encoder", "adapter", "language", "head") else "fusion"
