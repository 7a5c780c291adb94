"""What images became, kept for the next question about them."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import numpy as np

from vlmc.runtime.engines.engine import Feature, Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One image or video after the vision part, to be used in any prompt of the same session."""

    feature: Feature
    frames: int
    """Frames that it shows; 1 for a still."""
    key: str
    """The hash of its pixels."""
    owner: str
    """The store of the session that encoded it."""


class FeatureStore:
    """Features by the hash of their pixels, the most recent of them, `limit` bytes in all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.owner = uuid4().hex
        """What tells it from the stores of other sessions."""
        self.bytes = 0
        self.kept: OrderedDict[str, tuple[Feature, int]] = OrderedDict()

    def get(self, key: str) -> Feature | None:
        """The feature of `key`, which is now the most recent."""
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def put(self, key: str, feature: Feature) -> None:
        """Keeps a feature; the oldest ones go where there is no room."""
        size = feature_bytes(feature)
        if key in self.kept or size > self.limit:
            return
        self.kept[key] = (feature, size)
        self.bytes += size
        while self.bytes > self.limit:
            _, (_, freed) = self.kept.popitem(last=False)
            self.bytes -= freed

    def clear(self) -> None:
        """Forgets everything."""
        self.kept.clear()
        self.bytes = 0


def pixel_hash(pixels: Pixels) -> str:
    """What tells pixels from all others."""
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
    digest.update(repr(pixels.shape).encode())
    return digest.hexdigest()


def feature_bytes(feature: Any) -> int:
    """Memory that a feature takes, whatever an engine makes it of."""
    if isinstance(feature, list | tuple):
        return sum(feature_bytes(one) for one in cast("Sequence[Any]", feature))
    found = getattr(feature, "nbytes", None)
    return found if isinstance(found, int) else sys.getsizeof(feature)


def is_finite(feature: Any) -> bool:
    """Whether all numbers of a feature are, whatever an engine makes it of."""
    if isinstance(feature, list | tuple):
        return all(is_finite(one) for one in cast("Sequence[Any]", feature))
    if isinstance(feature, np.ndarray):
        return bool(np.isfinite(cast("Any", feature)).all())
    found = getattr(feature, "isfinite", None)  # a tensor of torch
    return found is None or bool(found().all())
