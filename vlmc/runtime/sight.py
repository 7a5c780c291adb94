"""The vision side of a session: pixels, and what they become, kept for the next question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Engine, Pixels
from vlmc.runtime.features import Encoded, FeatureStore, is_finite, pixel_hash
from vlmc.runtime.finite import overflowed
from vlmc.runtime.media import Clip, clip_pixels
from vlmc.runtime.processor import ImageProcessor
from vlmc.runtime.questions import Shown
from vlmc.runtime.regions import features_of, stand_in, stand_in_note
from vlmc.runtime.speaker import Cancel

AT_ONCE = 16
"""Images that are encoded in one call at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Reads images and has an engine encode them, each once."""

    design: Design
    engine: Engine
    processor: ImageProcessor | None
    store: FeatureStore
    seeded: bool

    def read(self, shown: Sequence[Shown]) -> list[Encoded | Pixels]:
        """The pixels of each image that is not encoded yet: [channels, height, width], with the
        frames in front where the encoder sees videos; of regions [regions, width].

        Raises UsageError where one cannot be read.
        """
        self.check_own(shown)
        return [self._pixels(one) if isinstance(one, Clip) else one for one in shown]

    def encode(self, read: Sequence[Encoded | Pixels], cancel: Cancel | None) -> list[Encoded]:
        """What each image becomes: kept from before, or encoded now with others of its shape.
        Nothing where `cancel` is set meanwhile. Raises EnvironmentFault where it is not finite."""
        found: dict[int, Encoded] = {}
        waiting: dict[tuple[int, ...], dict[str, tuple[Pixels, list[int]]]] = {}
        for place, one in enumerate(read):
            if isinstance(one, Encoded):
                found[place] = one
                continue
            key = pixel_hash(one)
            feature = self.store.get(key)
            if feature is None:
                group = waiting.setdefault(one.shape, {})
                group.setdefault(key, (one, []))[1].append(place)
            else:
                found[place] = self._encoded(feature, one, key)
        for group in waiting.values():
            keys = list(group)
            for first in range(0, len(keys), AT_ONCE):
                if cancel is not None and cancel.is_set():
                    return []
                some = keys[first : first + AT_ONCE]
                features = self.engine.encode_images(np.stack([group[key][0] for key in some]))
                for key, feature in zip(some, features, strict=True):
                    if not is_finite(feature):
                        raise overflowed("what an image becomes is")
                    self.store.put(key, feature)
                    pixels, places = group[key]
                    found |= {place: self._encoded(feature, pixels, key) for place in places}
        return [found[place] for place in range(len(read))]

    def check_own(self, shown: Sequence[Shown]) -> None:
        """Raises UsageError for images that another session encoded."""
        for number, one in enumerate(shown, start=1):
            if isinstance(one, Encoded) and one.owner != self.store.owner:
                raise UsageError(
                    f"image {number}: another session encoded it, with a model of its own; give "
                    f"the picture itself, or what encode_images of this session makes of it"
                )

    def frames(self, shown: Shown) -> int:
        """Frames that one image shows."""
        if isinstance(shown, Clip):
            return len(shown.frames)
        return shown.frames if isinstance(shown, Encoded) else 1

    def notes(self, shown: Sequence[Shown]) -> tuple[str, ...]:
        """What the user should know of images. Raises UsageError where a design that takes the
        features of regions, and has learnt from real ones, is shown pixels."""
        notes = [note for one in shown if isinstance(one, Clip) for note in one.notes]
        if self.design.regions and any(isinstance(one, Clip) for one in shown):
            notes.append(self._stand_in_note())
        return tuple(dict.fromkeys(notes))

    def regions(self, features: object, images: bool) -> list[Shown]:
        """Region features in place of an image. Raises UsageError where they do not fit."""
        if features is None:
            return []
        if not self.design.regions:
            raise UsageError(
                "--features: the encoder of this design sees pixels; give --image PATH"
            )
        if images:
            raise UsageError("--features stands in place of --image: give one of them")
        found = features_of(features, self.design)
        given, exactly = found.shape[1], self.design.regions
        if given != exactly and self.engine.name != "eager":
            raise UsageError(
                f"the features of {given} regions: the graphs of --engine {self.engine.name} take "
                f"those of exactly {exactly}; --engine eager takes fewer"
            )
        return list(found)

    def check_alike(self, shown: Sequence[Shown]) -> None:
        """Raises UsageError where images that are looked at from outside the sequence become
        unlike numbers of visual tokens."""
        if self.design.serving != "cross_attention":
            return
        counts = [self.frames(one) for one in shown]
        if len({self.design.visual[count - 1] for count in counts}) < 2:
            return
        names = [one.name if isinstance(one, Clip) else "an image" for one in shown]
        told = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        raise UsageError(
            f"videos that are asked about at once, by several prompts too, must show equally many "
            f"frames, but they show: {told}"
        )

    def _encoded(self, feature: Any, pixels: Pixels, key: str) -> Encoded:
        frames = pixels.shape[0] if pixels.ndim == 4 else 1
        return Encoded(feature=feature, frames=frames, key=key, owner=self.store.owner)

    def _pixels(self, clip: Clip) -> Pixels:
        if self.processor is None:
            self._stand_in_note()
            return stand_in([clip.frames[0][0]], self.design)[0]
        pixels = clip_pixels(clip, self.processor)
        return pixels if self.design.frames > 1 else pixels[0]

    def _stand_in_note(self) -> str:
        if not self.seeded:
            raise UsageError(
                f"this design sees no pixels: it takes the features of up to "
                f"{self.design.regions} regions that an object detector computed beforehand; give "
                f"them with --features FILE (safetensors: `features` [regions, "
                f"{self.design.region_width}])"
            )
        return stand_in_note(self.design)
