"""How many frames of a video an encoder sees."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from vlmc.components.contract import Described
from vlmc.components.fields import FrameCount


class Frames(Described):
    """Frames of one video, in training and in service. A still image is a video of one frame."""

    train: FrameCount = Field(
        description="Frames of each video in training, and so rows of a temporal embedding."
    )
    serve: FrameCount | None = Field(
        default=None,
        description="Frames of each video in service; those of training by default. Temporal "
        "embeddings beyond the trained frames are interpolated.",
    )

    @property
    def most(self) -> int:
        """The most frames that one video has."""
        return max(self.train, self.serve or 1)

    def mini(self) -> Self:
        """At most two trained and three served frames: beyond training stays beyond training."""
        serve = None if self.serve is None else min(self.serve, 3)
        return self.model_copy(update={"train": min(self.train, 2), "serve": serve})
