"""What a machine has left, by the files in which a system says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmc.hardware import host


def group(folder: Path, limit: str, used: int, stat: str) -> int | None:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)
    return host._left(folder, "memory.max", "memory.current")


def test_what_is_held_of_files_is_free(tmp_path: Path) -> None:
    assert group(tmp_path, "1000\n", 700, "anon 200\ninactive_file 450\n") == 750
    assert group(tmp_path, "1000\n", 1200, "anon 1200\n") == 0


def test_a_group_without_a_limit_bounds_nothing(tmp_path: Path) -> None:
    assert group(tmp_path, "max\n", 700, "") is None


def test_the_narrowest_bound_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_available", lambda: 500)
    monkeypatch.setattr(host, "_left", lambda group, limit, used: 300 if "max" in limit else None)
    assert host.free_memory() == 300
