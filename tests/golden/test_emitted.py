"""Whole texts of one build: the twin of LLaVA. Its model.py and those of every spec are committed
under generated/ and checked there.

To write the files again after a change that is meant: python tests/golden/test_emitted.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmc import pipeline
from vlmc.emit import catalog

FOLDER = Path(__file__).parent / "emitted"
SPEC = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
NAMES = ("README.md", "arch.txt", "spec.resolved.yaml")


def emitted() -> dict[str, bytes]:
    build = pipeline.plan(SPEC, FOLDER, (), True)
    return {b.path: b(build).data for b in catalog.TEXTS if b.path in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_what_it_was(name: str) -> None:
    refresh = "python tests/golden/test_emitted.py"
    assert emitted()[name].decode() == (FOLDER / name).read_text(encoding="utf-8"), refresh


if __name__ == "__main__":
    for name, data in emitted().items():
        (FOLDER / name).write_bytes(data)
