"""The store of finished graphs: what it gives back is what was put in, or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlmc.commands import app
from vlmc.diagnostics import UsageError
from vlmc.emit.store import Store, store

KEEP = """
import sys
from pathlib import Path
from vlmc.emit.store import Store
place, source = Path(sys.argv[1]), Path(sys.argv[2])
for key in range(40):
    Store(root=place).keep(f"{key:064x}", source, {}, "graphs")
"""


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """A folder of graphs that reads a file of weights beside it."""
    folder = tmp_path / "build" / "onnx"
    (folder / "weights").mkdir(parents=True)
    (tmp_path / "build" / "weights").mkdir()
    (tmp_path / "build" / "weights" / "model.safetensors").write_bytes(b"w" * 1000)
    os.link(
        tmp_path / "build" / "weights" / "model.safetensors",
        folder / "weights" / "model.safetensors",
    )
    (folder / "decoder.onnx").write_bytes(b"graph")
    return folder


def weights(folder: Path) -> dict[str, Path]:
    return {"weights/model.safetensors": folder.parent / "weights" / "model.safetensors"}


def empty(folder: Path, name: str = "again") -> Path:
    place = folder.parent / name
    place.mkdir()
    return place


def content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_what_was_kept_comes_back_and_weights_are_linked(graphs: Path, tmp_path: Path) -> None:
    kept = Store(root=tmp_path / "cache")
    kept.keep("a", graphs, weights(graphs), "onnx of x")
    held = content(tmp_path / "cache")
    assert not any(b"w" * 100 in data for data in held.values()), "the store holds no weights"
    again = empty(graphs)
    assert kept.fetch("a", again, weights(graphs))
    assert content(again) == content(graphs)
    assert (again / "weights" / "model.safetensors").samefile(*weights(graphs).values())
    assert not (again / "decoder.onnx").samefile(graphs / "decoder.onnx"), "a copy of its own"
    assert not kept.fetch("b", empty(graphs, "other"), weights(graphs))


def test_copied_weights_are_known_as_such(graphs: Path, tmp_path: Path) -> None:
    path = graphs / "weights" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    kept = Store(root=tmp_path / "cache")
    kept.keep("a", graphs, weights(graphs), "onnx of x")
    assert sum(entry.size for entry in kept.entries()) == len(b"graph")


@pytest.mark.parametrize("damage", ["changed", "missing", "no record", "a path outside"])
def test_a_damaged_entry_is_dropped(graphs: Path, tmp_path: Path, damage: str) -> None:
    notes: list[str] = []
    kept = Store(root=tmp_path / "cache", note=notes.append)
    kept.keep("a", graphs, weights(graphs), "onnx of x")
    entry = kept.graphs / "a"
    if damage == "changed":
        (entry / "files" / "decoder.onnx").write_bytes(b"grapH")
    elif damage == "missing":
        (entry / "files" / "decoder.onnx").unlink()
    elif damage == "no record":
        (entry / "entry.json").write_text("{")
    else:
        document = json.loads((entry / "entry.json").read_text())
        document["files"]["../escaped"] = document["files"].pop("decoder.onnx")
        (entry / "entry.json").write_text(json.dumps(document))
    again = empty(graphs)
    assert not kept.fetch("a", again, weights(graphs))
    assert list(again.iterdir()) == []
    assert not entry.exists()
    assert notes
    assert not (tmp_path / "build" / "escaped").exists()
    kept.keep("a", graphs, weights(graphs), "onnx of x")
    assert kept.fetch("a", again, weights(graphs))


def test_what_was_used_least_recently_goes(graphs: Path, tmp_path: Path) -> None:
    kept = Store(root=tmp_path / "cache", limit=12)
    for number, key in enumerate("ab"):
        kept.keep(key, graphs, weights(graphs), key)
        os.utime(kept.graphs / key / "entry.json", (number, number))
    assert kept.fetch("a", empty(graphs), weights(graphs))
    kept.keep("c", graphs, weights(graphs), "c")
    assert {entry.about for entry in kept.entries()} == {"a", "c"}
    (graphs / "decoder.onnx").write_bytes(b"larger than all")
    kept.keep("d", graphs, weights(graphs), "d")
    assert {entry.about for entry in kept.entries()} == {"a", "c"}, "it would not fit"


def test_a_cache_that_cannot_be_written_is_no_fault(graphs: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "cache").write_text("a file")
    kept = Store(root=tmp_path / "cache", note=notes.append)
    kept.keep("a", graphs, weights(graphs), "onnx of x")
    assert "onnx of x was not cached" in notes[0]
    assert not kept.fetch("a", empty(graphs), weights(graphs))
    assert kept.entries() == []


def test_processes_at_once_leave_whole_entries(graphs: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    command = [sys.executable, "-c", KEEP, str(place), str(graphs)]
    for process in [subprocess.Popen(command) for _ in range(2)]:
        assert process.wait(timeout=120) == 0
    kept = Store(root=place)
    assert len(kept.entries()) == 40
    for number, entry in enumerate(kept.entries()):
        assert kept.fetch(entry.folder.name, empty(graphs, f"again{number}"), {})
    assert list((place / "unfinished").iterdir()) == []


def test_where_it_is_and_how_large_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMC_CACHE_BYTES", "1000")
    monkeypatch.delenv("VLMC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (store().root, store().limit) == (tmp_path / "vlmc", 1000)
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "own"))
    assert store().root == tmp_path / "own"
    monkeypatch.setenv("VLMC_CACHE_BYTES", "10 GB")
    with pytest.raises(UsageError, match="a whole number of bytes"):
        store()


def test_notes_on_builds_and_damaged_entries_are_counted_and_trimmed(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Store(root=tmp_path / "cache")
    kept.keep("a", graphs, weights(graphs), "a")
    (kept.graphs / "a" / "entry.json").write_bytes(b"\xff{")
    kept.builds.mkdir()
    (kept.builds / "old.json").write_bytes(b"o" * 100)
    os.utime(kept.builds / "old.json", (1, 1))
    (kept.builds / "new.json").write_bytes(b"n" * 100)
    os.utime(kept.graphs / "a", (2, 2))
    (damaged,) = kept.entries()
    assert (damaged.about, damaged.size) == ("unreadable", len(b"graph") + 2)
    monkeypatch.setenv("VLMC_CACHE", str(kept.root))
    shown = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)
    assert (shown["bytes"], shown["notes"], len(shown["entries"])) == (207, 2, 1)
    Store(root=kept.root, limit=110).trim()
    assert [note.folder.name for note in kept.notes()] == ["new.json"], "the oldest goes first"
    assert len(kept.entries()) == 1
    Store(root=kept.root, limit=105).trim()
    assert (kept.entries(), len(kept.notes())) == ([], 1)
    assert kept.clear() == (0, 100)


def test_the_command_shows_and_clears(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "cache"))
    Store(root=tmp_path / "cache").keep("a", graphs, weights(graphs), "onnx of x")
    shown = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)
    assert (shown["bytes"], shown["entries"][0]["about"]) == (5, "onnx of x")
    assert "onnx of x, 5 bytes" in CliRunner().invoke(app, ["cache"]).stdout
    cleared = CliRunner().invoke(app, ["cache", "clear"])
    assert (cleared.exit_code, "1 artifacts removed" in cleared.stdout) == (0, True)
    assert Store(root=tmp_path / "cache").entries() == []
    assert CliRunner().invoke(app, ["cache", "wipe"]).exit_code == 2
