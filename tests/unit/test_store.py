"""The store of finished graphs: what it gives back is what was put in, or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlmc.commands import app
from vlmc.diagnostics import UsageError
from vlmc.emit.compiling import VARIABLE, compiling_in
from vlmc.emit.store import Store, store

A, B, C, D = (letter * 64 for letter in "abcd")

KEEP = """
import sys
import tempfile
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
    kept.keep(A, graphs, weights(graphs), "onnx of x")
    held = content(tmp_path / "cache")
    assert not any(b"w" * 100 in data for data in held.values()), "the store holds no weights"
    again = empty(graphs)
    assert kept.fetch(A, again, weights(graphs))
    assert content(again) == content(graphs)
    assert (again / "weights" / "model.safetensors").samefile(*weights(graphs).values())
    assert not (again / "decoder.onnx").samefile(graphs / "decoder.onnx"), "a copy of its own"
    assert not kept.fetch(B, empty(graphs, "other"), weights(graphs))


def test_copied_weights_are_known_as_such(graphs: Path, tmp_path: Path) -> None:
    path = graphs / "weights" / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    kept = Store(root=tmp_path / "cache")
    kept.keep(A, graphs, weights(graphs), "onnx of x")
    assert sum(entry.size for entry in kept.entries()) == len(b"graph")


@pytest.mark.parametrize("damage", ["changed", "missing", "no record", "a path outside"])
def test_a_damaged_entry_is_dropped(graphs: Path, tmp_path: Path, damage: str) -> None:
    notes: list[str] = []
    kept = Store(root=tmp_path / "cache", note=notes.append)
    kept.keep(A, graphs, weights(graphs), "onnx of x")
    entry = kept.graphs / A
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
    assert not kept.fetch(A, again, weights(graphs))
    assert list(again.iterdir()) == []
    assert not entry.exists()
    assert notes
    assert not (tmp_path / "build" / "escaped").exists()
    kept.keep(A, graphs, weights(graphs), "onnx of x")
    assert kept.fetch(A, again, weights(graphs))


def test_what_was_used_least_recently_goes(graphs: Path, tmp_path: Path) -> None:
    kept = Store(root=tmp_path / "cache", limit=12)
    for number, (key, about) in enumerate(((A, "a"), (B, "b"))):
        kept.keep(key, graphs, weights(graphs), about)
        os.utime(kept.graphs / key / "entry.json", (number, number))
    assert kept.fetch(A, empty(graphs), weights(graphs))
    kept.keep(C, graphs, weights(graphs), "c")
    assert {entry.about for entry in kept.entries()} == {"a", "c"}
    (graphs / "decoder.onnx").write_bytes(b"larger than all")
    kept.keep(D, graphs, weights(graphs), "d")
    assert {entry.about for entry in kept.entries()} == {"a", "c"}, "it would not fit"


def test_a_cache_that_cannot_be_written_is_no_fault(graphs: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "cache").write_text("a file")
    kept = Store(root=tmp_path / "cache", note=notes.append)
    kept.keep(A, graphs, weights(graphs), "onnx of x")
    assert "onnx of x was not cached" in notes[0]
    assert not kept.fetch(A, empty(graphs), weights(graphs))
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
    kept.keep(A, graphs, weights(graphs), "a")
    (kept.graphs / A / "entry.json").write_bytes(b"\xff{")
    kept.builds.mkdir()
    (kept.builds / f"{A}.json").write_bytes(b"o" * 100)
    os.utime(kept.builds / f"{A}.json", (1, 1))
    (kept.builds / f"{B}.json").write_bytes(b"n" * 100)
    os.utime(kept.graphs / A, (2, 2))
    (damaged,) = kept.entries()
    assert (damaged.about, damaged.size) == ("unreadable", len(b"graph") + 2)
    monkeypatch.setenv("VLMC_CACHE", str(kept.root))
    shown = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)
    assert (shown["bytes"], shown["notes"], len(shown["entries"])) == (207, 2, 1)
    Store(root=kept.root, limit=110).trim()
    assert [note.folder.name for note in kept.notes()] == [f"{B}.json"], "the oldest goes first"
    assert len(kept.entries()) == 1
    Store(root=kept.root, limit=105).trim()
    assert (kept.entries(), len(kept.notes())) == ([], 1)
    assert kept.clear() == (0, 100)


def test_the_command_shows_and_clears(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "cache"))
    Store(root=tmp_path / "cache").keep(A, graphs, weights(graphs), "onnx of x")
    shown = json.loads(CliRunner().invoke(app, ["cache", "--json"]).stdout)
    assert (shown["bytes"], shown["entries"][0]["about"]) == (5, "onnx of x")
    assert "onnx of x, 5 bytes" in CliRunner().invoke(app, ["cache"]).stdout
    cleared = CliRunner().invoke(app, ["cache", "clear"])
    assert (cleared.exit_code, "1 artifacts removed" in cleared.stdout) == (0, True)
    assert Store(root=tmp_path / "cache").entries() == []
    assert CliRunner().invoke(app, ["cache", "wipe"]).exit_code == 2


@pytest.fixture
def shared(graphs: Path, tmp_path: Path) -> Store:
    """A store in a folder that holds much that is not vlmc's, under the names of its folders."""
    kept = Store(root=tmp_path / "home", limit=1)
    for name in ("graphs/plot.svg", "graphs/thesis/ch1.txt", "builds/thesis.json", "notes.txt"):
        (kept.root / name).parent.mkdir(parents=True, exist_ok=True)
        (kept.root / name).write_text("mine")
    for name in ("unfinished/symphony/score.txt", "compiler/main.c", f"builds/{A}.txt"):
        (kept.root / name).parent.mkdir(parents=True, exist_ok=True)
        (kept.root / name).write_text("mine")
    for path in kept.root.rglob("*"):
        os.utime(path, (1, 1))
    return kept


def test_nothing_is_removed_but_what_is_vlmcs(graphs: Path, shared: Store) -> None:
    before = content(shared.root)
    shared.trim()
    assert content(shared.root) == before
    assert (shared.entries(), shared.notes()) == ([], [])
    Store(root=shared.root).keep(A, graphs, weights(graphs), "a")
    (shared.builds / f"{A}.json").write_text("{}")
    (shared.unfinished / "vlmc-killed").mkdir()
    (shared.unfinished / "vlmc-draft").write_text("{")
    assert len(content(shared.root)) == len(before) + 4
    assert shared.clear() == (1, 7)
    assert content(shared.root) == before
    assert not (shared.unfinished / "vlmc-killed").exists()


def test_a_cleared_store_leaves_nothing(graphs: Path, tmp_path: Path) -> None:
    kept = Store(root=tmp_path / "cache")
    kept.keep(A, graphs, weights(graphs), "a")
    kept.clear()
    assert list(kept.root.iterdir()) == []


def test_what_killed_processes_left_goes_after_a_day(tmp_path: Path) -> None:
    kept = Store(root=tmp_path / "cache")
    kept.unfinished.mkdir(parents=True)
    for name in ("vlmc-old", "vlmc-new"):
        (kept.unfinished / f"{name}.json").write_text("{")
        (kept.unfinished / name).mkdir()
    for name in ("vlmc-old", "vlmc-old.json"):
        os.utime(kept.unfinished / name, (1, 1))
    kept.trim()
    left = sorted(path.name for path in kept.unfinished.iterdir())
    assert left == ["vlmc-new", "vlmc-new.json"]


def test_what_torchs_compiler_keeps_is_counted_bounded_and_cleared(tmp_path: Path) -> None:
    kept = Store(root=tmp_path / "cache", limit=10)
    folder = kept.compiler()
    assert folder is not None
    (folder / "ab").mkdir()
    (folder / "ab" / "kernel.so").write_bytes(b"x" * 11)
    (found,) = kept.entries()
    assert (found.size, found.about) == (11, "what torch's compiler keeps")
    kept.trim()
    assert folder.exists(), "a compiler may be writing there"
    os.utime(folder, (1, 1))
    kept.trim()
    assert not folder.exists()
    again = kept.compiler()
    assert again == folder
    (folder / "kernel.so").write_bytes(b"x" * 5)
    assert kept.clear() == (1, 5)
    assert not folder.exists()


def test_without_a_store_torchs_compiler_has_no_folder_of_vlmcs(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert Store(root=tmp_path / "cache").compiler() is None


@pytest.mark.parametrize(
    "given", [None, f"{tempfile.gettempdir()}/torchinductor_somebody", "/of/the/user"]
)
def test_torchs_compiler_keeps_in_the_store_what_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    kept = Store(root=tmp_path / "cache")
    if given is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, given)
    with compiling_in(kept):
        expected = given if given == "/of/the/user" else str(kept.compiler())
        assert os.environ[VARIABLE] == expected
    assert os.environ.get(VARIABLE) == given
    (tmp_path / "file").write_text("")
    with compiling_in(Store(root=tmp_path / "file")):
        assert os.environ.get(VARIABLE) == given


@pytest.mark.parametrize("command", ["run", "verify", "build"])
def test_commands_that_compile_do_so_in_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path, command: str
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("VLMC_CACHE", str(tmp_path / "cache"))
    seen: list[str | None] = []

    def told(*_: object, **__: object) -> None:
        seen.append(os.environ.get(VARIABLE))
        raise UsageError("enough")

    monkeypatch.setattr("vlmc.sessions.load", told)
    monkeypatch.setattr("vlmc.pipeline.verify", told)
    monkeypatch.setattr("vlmc.pipeline._made", told)
    spec = str(root / "specs" / "llava-1.5.yaml")
    words = {
        "run": ["run", spec, "--engine", "compile", "--prompt", "x"],
        "verify": ["verify", str(tmp_path)],
        "build": ["build", spec, "--mini", "--output", str(tmp_path / "out")],
    }
    assert CliRunner().invoke(app, words[command]).exit_code == 2
    assert seen == [str(store().compiler())]
    assert VARIABLE not in os.environ
