"""`vlmc verify` writes its record whole, beside no build that has come meanwhile, or not at all."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from test_writer import describe, nothing_beside, texts

from vlmc.emit import swap, writer
from vlmc.emit.artifact import Artifact
from vlmc.emit.lock import locked
from vlmc.emit.manifest import MEASURED
from vlmc.emit.verify import verdict
from vlmc.emit.verify.record import Measured, Verification, Verified
from vlmc.pipeline import plan

LLAVA = Path(__file__).parents[2] / "specs" / "llava-1.5.yaml"
BEFORE = b"what was measured before"
RIGHT = Measured(
    case="one",
    graph="language",
    lengths=(3,),
    images=(0,),
    steps=1,
    max_abs=0.0,
    max_relative=0.0,
    mean_relative=0.0,
    tokens=1.0,
)
FOUND = Verification(
    host={},
    engines={
        "onnx": Verified(
            artifact="onnx",
            follows_from="0",
            measured="full",
            judged="max_relative",
            tolerance=1e-4,
            max_abs=0.0,
            max_relative=0.0,
            mean_relative=0.0,
            tokens=1.0,
            runtime={},
            cases=(RIGHT,),
        )
    },
)


def build(folder: Path, artifacts: list[Artifact]) -> writer.Manifest:
    return writer.write(folder, artifacts, describe, verify=lambda *given: BEFORE)


def examined(
    folder: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object] = lambda: None
) -> list[str]:
    """The notes of an examination that finds everything sound, and at whose end `meanwhile` is
    done."""
    notes: list[str] = []
    manifest = build(folder, texts(a_txt="one"))

    def verify(*given: object) -> Verification:
        meanwhile()
        return FOUND

    monkeypatch.setattr(verdict, "verify", verify)
    monkeypatch.setattr(writer.Manifest, "verify", lambda self, folder: [])  # the record is no such
    found = verdict.examine(manifest, lambda: plan(LLAVA, folder, (), True, note=notes.append))
    assert found.sound
    assert [*found.engines] == ["onnx"]
    assert nothing_beside(folder)
    return notes


def test_what_is_found_takes_the_place_of_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    assert examined(folder, monkeypatch) == []
    assert (folder / MEASURED).read_text() == FOUND.text()
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "manifest.json", MEASURED]


def test_a_record_that_cannot_be_written_whole_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, (soft, hard) = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        notes = examined(
            folder, monkeypatch, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert notes == [f"{folder / MEASURED} was not written: File too large"]
    assert (folder / MEASURED).read_bytes() == BEFORE


def test_a_build_that_came_meanwhile_keeps_its_own_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    notes = examined(folder, monkeypatch, lambda: build(folder, texts(a_txt="two")))
    assert "the folder was built again while this was measured" in notes[0]
    assert (folder / MEASURED).read_bytes() == BEFORE


def test_a_build_that_is_under_way_is_not_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    held = locked(swap.Places(folder).lock, folder)
    monkeypatch.setattr("test_verdict.nothing_beside", lambda folder: True)
    notes = examined(folder, monkeypatch, held.__enter__)
    assert f"is being built by process {os.getpid()}" in notes[0]
    assert (folder / MEASURED).read_bytes() == BEFORE
    held.__exit__(None, None, None)
