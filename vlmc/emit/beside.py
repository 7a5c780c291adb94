"""What a user has put into a build folder for an artifact to read."""

from __future__ import annotations

from vlmc.emit.artifact import Build
from vlmc.emit.faults import explained
from vlmc.emit.record import File, hashed

TOKENIZER = "tokenizer.json"
FILES = (TOKENIZER, "tokenizer_config.json", "config.json", "generation_config.json")
"""A tokenizer, and what may say beside it how a text begins and ends."""


def beside(build: Build) -> dict[str, File]:
    """The tokenizer files in the folder of a build, by their names; none where no artifact reads
    them. Raises EnvironmentFault where one cannot be read."""
    if build.options.layout is None or not (build.folder / TOKENIZER).is_file():
        return {}
    with explained(build.folder, "read"):
        paths = [build.folder / name for name in FILES]
        return {path.name: hashed(path) for path in paths if path.is_file()}
