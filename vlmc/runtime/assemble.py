"""A session from an engine and the files that came with its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vlmc.diagnostics.faults import UsageError
from vlmc.runtime.byte_tokenizer import ARCHITECTURES, byte_tokenizer
from vlmc.runtime.chat import ChatTemplate, chat_template
from vlmc.runtime.choices import class_names
from vlmc.runtime.design import Design
from vlmc.runtime.engines.engine import Engine
from vlmc.runtime.finite import not_finite
from vlmc.runtime.json_object import json_object
from vlmc.runtime.processor import (
    ImageProcessor,
    check_size,
    from_checkpoint,
    from_spec,
    has_processor,
)
from vlmc.runtime.session import Session
from vlmc.runtime.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """The folders in which the files lie that came with weights."""

    build: Path | None = None
    """A build of ours: what lies in it by hand comes first."""
    words: Path | None = None
    """Where the language model's files are: tokenizer, settings, chat template."""
    pictures: Path | None = None
    """Where the encoder's are: the image processor."""
    tokenizer: Path | None = None
    """What a caller gives in place of the tokenizer there."""
    seeded: bool = False
    """Whether the model has learnt nothing."""
    seeded_parts: tuple[str, ...] = ()
    """The parts that have learnt nothing while others have."""


def deployed(
    folder: Path, design: Design, engine: Engine, *, tokenizer: Path | None = None
) -> Session:
    """A session over the artifacts of a build folder, which `engine` runs.

    Raises UsageError where there is no tokenizer, or a file does not fit the design.
    """
    equipment = equip(design, of_build(folder, design, tokenizer))
    return equipment.session(engine, lambda: not_finite(folder / "weights"))


def of_build(folder: Path, design: Design, tokenizer: Path | None = None) -> Belongings:
    """What lies in a build folder with weights."""
    weights = folder / "weights"
    origin = built_from(folder)
    given = {source.split()[0] for source in origin.split(", ") if source}
    seeded = origin.startswith("seed")
    partly = not seeded and "seed" in origin.split()
    return Belongings(
        build=folder,
        words=weights,
        pictures=weights,
        tokenizer=tokenizer,
        seeded=seeded,
        seeded_parts=without_values(design, given) if partly else (),
    )


def without_values(design: Design, given: set[str]) -> tuple[str, ...]:
    """The parts of a design that got no weights where `given` did. A language model's folder counts
    for the head."""
    known = given | ({"head"} if "language" in given else set[str]())
    return tuple(part for part in design.parts if part not in known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """All that a session needs beside an engine."""

    design: Design
    tokenizer: Tokenizer
    processor: ImageProcessor | None
    chat: ChatTemplate | None
    labels: dict[int, str]
    seeded: bool
    seeded_parts: tuple[str, ...]

    def session(self, engine: Engine, examine: Callable[[], Sequence[str]] = tuple) -> Session:
        """A session that `engine` runs; `examine` names the weights that are not finite."""
        return Session(
            design=self.design,
            engine=engine,
            tokenizer=self.tokenizer,
            processor=self.processor,
            chat=self.chat,
            labels=self.labels,
            seeded=self.seeded,
            seeded_parts=self.seeded_parts,
            examine=examine,
        )


def equip(design: Design, belongings: Belongings) -> Equipment:
    """The tokenizer, the image processor, the chat template and the names of classes that belong to
    the weights: what can be wrong before they are read. Raises as `deployed` does."""
    return Equipment(
        design=design,
        tokenizer=words_of(design, belongings),
        processor=pictures_of(design, belongings),
        chat=_chat_of(belongings),
        labels=class_names(belongings.words),
        seeded=belongings.seeded,
        seeded_parts=belongings.seeded_parts,
    )


def words_of(design: Design, belongings: Belongings) -> Tokenizer:
    """The tokenizer that is given, else that of the weights' folder, else bytes for a twin."""
    folder, build = belongings.words, belongings.build
    if belongings.tokenizer is not None:
        return load_tokenizer(belongings.tokenizer, checkpoint=folder)
    if build is not None and (build / "tokenizer.json").is_file():
        return load_tokenizer(build, checkpoint=folder)
    if folder is not None and (build is None or (folder / "tokenizer.json").is_file()):
        return load_tokenizer(folder)
    if belongings.seeded:
        return byte_tokenizer(ARCHITECTURES[design.serving], design.vocabulary)
    raise UsageError(
        f"{build or design.name} has weights but no tokenizer; give the published one with "
        f"--tokenizer PATH (tokenizer.json, or the folder that holds it)"
    )


def pictures_of(design: Design, belongings: Belongings) -> ImageProcessor | None:
    """The image processor of the weights' folder, else the design's; None where it sees none."""
    if design.preprocessing is None or design.image_size is None:
        return None
    processor = from_spec(design.preprocessing, design.image_size)
    where = f"the spec of {design.name}"
    folder = belongings.pictures
    if belongings.build is not None and has_processor(belongings.build):  # put there by hand
        folder = belongings.build
    if folder is not None:
        own = from_checkpoint(folder, processor)
        where = where if own == processor else f"the image processor of {folder}"
        processor = own
    check_size(processor, design.image_size, where)
    return processor


def built_from(folder: Path) -> str:
    """What a build's manifest says that its weights come from, such as `seed 0`."""
    artifacts: Any = json_object(folder / "manifest.json").get("artifacts")
    weights: Any = cast("Any", artifacts).get("weights") if isinstance(artifacts, dict) else None
    origin: Any = cast("Any", weights).get("source") if isinstance(weights, dict) else None
    return origin if isinstance(origin, str) else ""


def _chat_of(belongings: Belongings) -> ChatTemplate | None:
    given = belongings.tokenizer
    beside = None if given is None else given if given.is_dir() else given.parent
    for folder in (beside, belongings.build, belongings.words):
        found = None if folder is None else chat_template(folder)
        if found is not None:
            return found
    return None
