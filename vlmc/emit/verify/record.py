"""verification.json: what was measured of a build on the present machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from vlmc.emit.record import Record
from vlmc.emit.seal import SEAL, intact, sealed

SCHEMA = 1
DEFINITIONS = {
    "reference": "the model itself in torch, eager, its weights converted to fp32",
    "max_abs": "the largest absolute difference of any number from the reference's",
    "max_relative": "max_abs divided by the largest magnitude of the reference in the same case",
    "mean_relative": "the mean absolute difference divided by the standard deviation of the "
    "reference in the same case: by it quantised graphs are judged, all others by max_relative",
    "tokens": "the share of positions whose likeliest token is the reference's; every engine is "
    "given the reference's tokens to go on with",
    "compile-paged": "the engine compile with its key/value cache in blocks: every case by graphs "
    "as they are exported, and once more, at the end, one of several rows by compiled ones",
    "transformers.js": "the graphs of the layout in ONNX Runtime, fed as the client of that name "
    "feeds them; graphs under a second name (_quantized for _int8) are the same bytes",
    "measured": "full: the design itself; twin: its laptop-size twin, where this machine cannot "
    "hold the design twice",
}


class Measured(Record, ser_json_inf_nan="strings"):
    """One case on one part of an artifact."""

    case: str
    graph: Literal["vision", "language"]
    """language is everything after the vision graph."""
    lengths: tuple[int, ...]
    """Tokens of each row."""
    images: tuple[int, ...]
    """Images of each row."""
    steps: int
    """Tokens by which the cache was continued."""
    max_abs: float
    max_relative: float
    mean_relative: float
    tokens: float | None


class Verified(Record, ser_json_inf_nan="strings"):
    """One engine of one artifact."""

    artifact: str
    follows_from: str
    """The hash of the artifact's files and of all else that the figures follow from: what the
    artifact was made of, weights included, what measured it, and in which versions."""
    measured: Literal["full", "twin"]
    judged: Literal["max_relative", "mean_relative"]
    """The error that must be within the tolerance."""
    tolerance: float
    max_abs: float
    max_relative: float
    mean_relative: float
    tokens: float
    runtime: Mapping[str, str]
    """Versions of what executed it, and in which form where there are several."""
    cases: tuple[Measured, ...]

    @property
    def sound(self) -> bool:
        """Whether it is within its tolerance."""
        return self.error <= self.tolerance

    @property
    def error(self) -> float:
        """The error by which it is judged."""
        return getattr(self, self.judged)


class Verification(Record, ser_json_inf_nan="strings"):
    """All that was measured of a build."""

    version_of_schema: Literal[1] = Field(default=SCHEMA, alias="schema")
    definitions: Mapping[str, str] = DEFINITIONS
    host: Mapping[str, str]
    engines: Mapping[str, Verified]

    def text(self) -> str:
        """The text of verification.json, with its seal. Errors need not be finite."""
        document: Any = self.model_dump(mode="json", by_alias=True)
        return sealed(document)

    @staticmethod
    def parse(data: bytes | None) -> Verification | None:
        """What `text` wrote, to the last byte; None for anything else."""
        try:
            if data is None or not intact(data):
                return None
            document: Any = json.loads(data)
            del document[SEAL]
            return Verification.model_validate_json(json.dumps(document))
        except ValueError:
            return None
